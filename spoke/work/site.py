"""What this site offers to an attempt: its spawners, its mounts, its place for output, and the owner's veto.

Spawners are there for every kind that this host knows, also those that the policy does not offer any more: what an
earlier daemon started must be found and ended whatever the settings say today.
"""

from collections.abc import Mapping

import msgspec

from shared.messages import AgentSpec, SandboxKind, Spawn
from spoke.config import Mount
from spoke.core.gate import judge
from spoke.core.policy import Policy
from spoke.queue.entries import Lease
from spoke.spawners.base import MountPoint, Sandbox, Spawner
from spoke.state.handles import Record
from spoke.state.spools import Spools

_decode = msgspec.json.Decoder(Spawn).decode


class Site:
    """Built once by the daemon; holds no state of its own."""

    def __init__(
        self,
        *,
        policy: Policy,
        mounts: Mapping[str, Mount],
        spawners: Mapping[SandboxKind, Spawner],
        spools: Spools,
    ) -> None:
        self._policy = policy
        self._mounts = mounts
        self._spawners = spawners
        self.spools = spools

    def objection(self, spec: AgentSpec) -> str | None:
        """Return why the site owner does not let this run, or None."""
        no = judge(spec, self._policy)
        return None if no is None else no[1]

    def spawner(self, kind: SandboxKind) -> Spawner:
        return self._spawners[kind]

    def sandbox(self, of: Lease | Record) -> Sandbox:
        """Return the sandbox of an attempt, the same for every daemon that asks."""
        spec = _decode(of.item).spec
        return Sandbox(
            agent=of.agent,
            gen=of.gen,
            attempt=of.attempt,
            fence=of.fence,
            spec=spec,
            mounts=self._mount_points(spec),
            folder=self.spools.folder(of.agent, of.gen, of.attempt),
        )

    def _mount_points(self, spec: AgentSpec) -> tuple[MountPoint, ...]:
        """Mounts that the owner has withdrawn are left out; the gate has then said no before anything starts."""
        known = (self._mounts[name] for name in spec.mounts if name in self._mounts)
        return tuple(MountPoint(source=m.source, target=m.target or m.source) for m in known)
