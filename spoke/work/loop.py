"""The lease loop: as many attempts alive as there are slots.

It wakes when something was taken in, when a slot falls free, when a retry or a deadline is due, and every second in
any case. Each round leases what fits, makes the intents durable in one commit, and starts a supervisor for each. No
order among these may change: an attempt that is not written down is never begun.

A kill may reach the queue between the lease's answer and the start of its supervisor. So kills are kept for as long
as a round is under way; also those of agents that have a supervisor, since that of the attempt before may still be
cleaning up when the next one is leased.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from shared.clock import Clock
from shared.errors import UnavailableError
from shared.messages import Kill
from spoke.core.attempt import AttemptEvent, Denied, IntentWritten
from spoke.queue.entries import Lease
from spoke.queue.queue import Queue
from spoke.spawners.base import Handle
from spoke.state.handles import Handles, Intent, Key, Record
from spoke.work.batching import until_there
from spoke.work.ledger import Ledger
from spoke.work.site import Site
from spoke.work.supervisor import Supervisor

log = structlog.get_logger()

_MOST_AT_ONCE: Final = 128
_LOOK_S: Final = 1.0
# Making a sandbox is work for the kernel and for this loop; more at once only make each one slower.
_PREPARES: Final = 8


class Loop:
    """Built by the daemon: first `adopt` what a predecessor left, then `run`, in one owned task."""

    def __init__(
        self,
        *,
        queue: Queue,
        handles: Handles,
        ledger: Ledger,
        site: Site,
        slots: int,
        now: Clock,
        on_events: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._handles = handles
        self._ledger = ledger
        self._site = site
        self._slots = slots
        self._now = now
        self._on_events = on_events
        self._prepares = asyncio.Semaphore(_PREPARES)
        self._wake = asyncio.Event()
        self._live: dict[str, Supervisor] = {}
        self._busy = 0
        self._early: dict[str, Kill] | None = None  # None while no round is under way
        self._adopted: list[Supervisor] = []
        self._due_ms: int | None = None
        self._open = asyncio.Event()

    def open(self) -> None:
        """Let leasing begin; what was adopted is looked after from the start of `run`."""
        self._open.set()

    def alive(self) -> frozenset[Key]:
        """Return the attempts that are looked after."""
        sandboxes = (supervisor.sandbox for supervisor in self._live.values())
        return frozenset(Key(s.agent, s.gen, s.attempt) for s in sandboxes)

    @property
    def has_room(self) -> bool:
        """Whether what comes now would be leased at once, as far as slots go."""
        return self._open.is_set() and self._busy < self._slots

    def wake(self) -> None:
        """There may be something to lease."""
        self._wake.set()

    def find(self, agent: str, gen: int) -> Supervisor | None:
        """Return who looks after the newest attempt of this generation, if it is alive here."""
        found = self._live.get(agent)
        return found if found is not None and found.sandbox.gen == gen else None

    def kill(self, kill: Kill) -> None:
        """Have what is alive ended; idempotent. What has not started is the queue's to end."""
        found = self._live.get(kill.agent)
        if found is not None and found.sandbox.gen <= kill.gen:
            found.kill(kill.grace_ms, kill.reason)
        if self._early is not None:  # also then: see above
            self._early[kill.agent] = kill

    def say_again(self) -> None:
        """Report everything that runs to the queue's new incarnation."""
        for supervisor in self._live.values():
            supervisor.say_again()

    def adopt(
        self, record: Record, lease: Lease, handle: Handle | None, event: AttemptEvent
    ) -> None:
        """Take over an attempt of a dead daemon; before `run`."""
        supervisor = self._supervise(record, handle)
        if lease.kill:
            supervisor.kill(lease.kill_grace_ms, lease.kill_reason)
        supervisor.tell(event)
        self._adopted.append(supervisor)

    async def run(self) -> None:
        """Lease and supervise, for ever. Raises FencedError; cancelled, it leaves the sandboxes as they are."""
        async with asyncio.TaskGroup() as group:
            for supervisor in self._adopted:
                group.create_task(self._drive(supervisor))
            self._adopted.clear()
            await self._open.wait()
            while True:
                try:
                    again = await self._round(group)
                except UnavailableError as error:
                    log.warning("waiting", what="lease", error=str(error))
                    await asyncio.sleep(_LOOK_S)
                    continue
                if not again:
                    await self._rest()

    async def _rest(self) -> None:
        wait_s = _LOOK_S
        if self._due_ms is not None:
            wait_s = min(wait_s, max(0.001, (self._due_ms - self._now()) / 1000))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _round(self, group: asyncio.TaskGroup) -> bool:
        """Lease once and start what came; tells whether there may be more at once."""
        self._wake.clear()
        count = max(0, min(_MOST_AT_ONCE, self._slots - self._busy))
        before = self._queue.head_seq
        self._early = {}
        try:
            found = await self._queue.lease(count, self._now())
            await self._intend(found.leases)
            for lease in found.leases:
                group.create_task(self._drive(self._begin(lease)))
        finally:
            self._early = None
        self._due_ms = found.next_due_ms
        if self._queue.head_seq > before:
            self._on_events()
        return 0 < count <= len(found.leases)

    async def _intend(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        intents = [
            Intent(
                agent=lease.agent,
                gen=lease.gen,
                attempt=lease.attempt,
                fence=lease.fence,
                cmd=lease.cmd,
                cmd_sha256=lease.cmd_sha256,
                item=lease.item,
                retries=lease.retries,
            )
            for lease in leases
        ]
        await until_there("intend", lambda: self._handles.intend(intents))

    def _begin(self, lease: Lease) -> Supervisor:
        supervisor = self._supervise(lease, None)
        if lease.kill:
            supervisor.kill(lease.kill_grace_ms, lease.kill_reason)
        early = (self._early or {}).get(lease.agent)
        if early is not None and lease.gen <= early.gen:
            supervisor.kill(early.grace_ms, early.reason)
        objection = self._site.objection(supervisor.sandbox.spec)
        supervisor.tell(IntentWritten() if objection is None else Denied(detail=objection))
        return supervisor

    def _supervise(self, of: Lease | Record, handle: Handle | None) -> Supervisor:
        sandbox = self._site.sandbox(of)
        supervisor = Supervisor(
            sandbox=sandbox,
            retries=of.retries,
            spawner=self._site.spawner(sandbox.spec.sandbox),
            ledger=self._ledger,
            prepares=self._prepares,
            now=self._now,
            handle=handle,
        )
        self._live[sandbox.agent] = supervisor
        self._busy += 1
        return supervisor

    async def _drive(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        finally:
            self._busy -= 1
            if self._live.get(supervisor.sandbox.agent) is supervisor:
                del self._live[supervisor.sandbox.agent]
            self.wake()
