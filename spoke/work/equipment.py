"""Which sandbox kinds this host can run, and what the site owner must have allowed for that.

Degraded is said aloud and never assumed: a control that this host cannot enforce, or root as the agents' user, stops
the daemon unless the settings allow it by name.
"""

from collections.abc import Mapping

import msgspec

from shared.errors import ConfigError
from shared.messages import SandboxKind
from spoke.config import SandboxGroup
from spoke.spawners.base import Spawner
from spoke.spawners.bubblewrap import Bubblewrap
from spoke.spawners.host import Host
from spoke.spawners.process import Process
from spoke.spawners.simulated import Simulated


class Equipment(msgspec.Struct, frozen=True, kw_only=True):
    """`spawners` holds every kind; `kinds` those that are offered; `lacks` what these cannot enforce here."""

    kinds: tuple[SandboxKind, ...]
    spawners: Mapping[SandboxKind, Spawner]
    lacks: tuple[str, ...]


def spawners_of(host: Host) -> dict[SandboxKind, Spawner]:
    """Return a spawner for every kind: what an earlier daemon started must be found under any settings."""
    made: tuple[Spawner, ...] = (Bubblewrap(host), Process(host), Simulated())
    return {spawner.kind: spawner for spawner in made}


def equip(settings: SandboxGroup, host: Host) -> Equipment:
    """Return what is offered here; raises ConfigError that says what would have to be allowed or changed."""
    spawners = spawners_of(host)
    kinds = settings.kinds or (SandboxKind.BUBBLEWRAP,)
    if SandboxKind.BUBBLEWRAP in kinds and host.trouble:
        raise ConfigError(f"sandbox.kinds: bubblewrap does not work here: {host.trouble}")
    real = [kind for kind in kinds if kind is not SandboxKind.SIMULATED]
    if real and host.needs_root_permission and not settings.allow_root:
        raise ConfigError(
            "sandbox.allow_root: the daemon is root, so agents would be; run it as another user, or allow that"
        )
    lacks = tuple(dict.fromkeys(line for kind in kinds for line in spawners[kind].lacks()))
    if lacks and not settings.allow_degraded:
        raise ConfigError(
            f"sandbox.allow_degraded: this host cannot enforce everything: {'; '.join(lacks)}"
        )
    return Equipment(kinds=tuple(kinds), spawners=spawners, lacks=lacks)
