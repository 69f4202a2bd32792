"""What the site owner allows, as one value, and its digest.

The digest rides in every heartbeat: an agent that this spoke refused by policy is offered again only after the
digest has changed, so nobody has to tell the hub what the policy *says*.
"""

from typing import Final

import msgspec

from shared.ids import sha256
from shared.messages import SandboxKind
from spoke.config import SandboxGroup

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What may run here. `kinds` are those that are allowed *and* work on this host, sorted."""

    kinds: tuple[SandboxKind, ...]
    mounts: tuple[str, ...]  # names, sorted
    host_network: bool
    degraded: bool  # sandboxes may start although this host cannot enforce every control
    root: bool  # sandboxes may start although the daemon is root


def policy_of(settings: SandboxGroup, kinds: tuple[SandboxKind, ...]) -> Policy:
    """Return the policy of this site, given the sandbox kinds that its host can run."""
    return Policy(
        kinds=tuple(sorted(set(kinds))),
        mounts=tuple(sorted(settings.mounts)),
        host_network=settings.allow_host_network,
        degraded=settings.allow_degraded,
        root=settings.allow_root,
    )


def digest(policy: Policy) -> str:
    """Return the SHA-256 of the policy's canonical JSON."""
    return sha256(_encode(policy))
