"""Ends what lives: for an embedded stack that must leave nothing behind, and for a site that is given up.

Needs nothing but the state folder, neither queue nor NATS. The records stay: a daemon that is started later reports
how these attempts ended.
"""

import asyncio

from spoke.config import SpokeSettings
from spoke.core.policy import policy_of
from spoke.spawners.host import look
from spoke.state.folder import StateFolder
from spoke.state.handles import Key
from spoke.work.equipment import spawners_of
from spoke.work.recovery import destroy_all
from spoke.work.site import Site


def destroy_sandboxes(settings: SpokeSettings) -> list[Key]:
    """End every live sandbox and return their attempts. Raises ConfigError while a daemon has the folder."""
    state = StateFolder.open(settings.spoke.state)
    try:
        site = Site(
            policy=policy_of(settings.sandbox, ()),
            mounts=settings.sandbox.mounts,
            spawners=spawners_of(look()),
            spools=state.spools,
        )
        return asyncio.run(destroy_all(state.handles, site))
    finally:
        state.close()
