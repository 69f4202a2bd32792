"""What a dead daemon left: found again, compared with the queue, and given to the loop.

Two witnesses are asked. The state folder knows which attempts were begun; the spawners know what became of their
sandboxes; the queue knows which attempts are ours to go on with. Where they agree, the attempt goes on. Where only the
queue knows an attempt, it was never begun and is handed back. Where only the folder knows one, the queue has its
outcome already, or has lost its contents: whatever still lives of it is ended, since the hub will send it again, and
two sandboxes of one agent must never be alive.
"""

import asyncio
import random
from typing import Final

import msgspec
import structlog

from shared.clock import Clock
from shared.messages import Exit
from spoke.core.attempt import Adopted, AttemptEvent, Exited, ExitFound, NeverRan
from spoke.queue.entries import Lease, Note
from spoke.queue.queue import Queue
from spoke.spawners.base import Handle
from spoke.state.handles import Handles, Key, Record
from spoke.work.batching import until_there
from spoke.work.loop import Loop
from spoke.work.site import Site

log = structlog.get_logger()

# Recovering reads /proc and waits for status lines; side by side, but without a storm.
_SIDE_BY_SIDE: Final = 16
_decode_handle = msgspec.json.Decoder(Handle).decode
_encode = msgspec.json.Encoder().encode


class Recovery:
    """Built by the daemon for one `run` at its start, before anything is taken in or leased."""

    def __init__(
        self, *, queue: Queue, handles: Handles, site: Site, loop: Loop, now: Clock
    ) -> None:
        self._queue = queue
        self._handles = handles
        self._site = site
        self._loop = loop
        self._now = now
        self._limit = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def run(self) -> None:
        """Recover and reconcile, however long Valkey is away. Raises FencedError."""
        found = await until_there("recover", self._queue.leased)
        leased = {(lease.agent, lease.gen, lease.fence): lease for lease in found}
        records = self._handles.all()
        async with asyncio.TaskGroup() as group:
            for record in records:
                lease = leased.pop((record.agent, record.gen, record.fence), None)
                group.create_task(self._recover(record, lease))
        await self._hand_back(list(leased.values()))
        if records or leased:
            log.info("recovered", attempts=len(records), handed_back=len(leased))

    async def _recover(self, record: Record, lease: Lease | None) -> None:
        async with self._limit:
            if lease is None:
                await self._end(record)
            else:
                handle, event = await self._find(record)
                self._loop.adopt(record, lease, handle, event)

    async def _find(self, record: Record) -> tuple[Handle | None, AttemptEvent]:
        handle = _handle_of(record)
        if record.exit is not None:
            return handle, ExitFound(exit=record.exit, now_ms=self._now(), chance=random.random())  # noqa: S311 - jitter
        sandbox = self._site.sandbox(record)
        found = await self._site.spawner(sandbox.spec.sandbox).recover(sandbox, handle)
        if found is None:
            return handle, NeverRan()
        if isinstance(found, Exit):
            return handle, Exited(exit=found)
        if found != handle:
            await self._handles.hold([(record.key, _encode(found))])
        return found, Adopted(ran_ms=max(0, self._now() - found.prepared_ms))

    async def _end(self, record: Record) -> None:
        """Make certain that nothing of it lives, and forget it."""
        sandbox = self._site.sandbox(record)
        spawner = self._site.spawner(sandbox.spec.sandbox)
        handle = _handle_of(record)
        if record.exit is None:
            found = await spawner.recover(sandbox, handle)
            if isinstance(found, Handle):
                log.warning("orphan_ended", attempt=sandbox.name)
                await spawner.destroy(sandbox, found)
        await spawner.clean_up(sandbox, handle)
        await self._handles.forget([record.key])

    async def _hand_back(self, leases: list[Lease]) -> None:
        notes = [
            Note(agent=lease.agent, gen=lease.gen, attempt=lease.attempt, fence=lease.fence)
            for lease in leases
        ]
        if notes:
            await until_there("hand_back", lambda: self._queue.hand_back(notes, self._now()))


async def destroy_all(handles: Handles, site: Site) -> list[Key]:
    """End every sandbox that the state folder knows, and return their attempts. The records stay, for a successor."""
    ended: list[Key] = []
    for record in handles.all():
        sandbox = site.sandbox(record)
        spawner = site.spawner(sandbox.spec.sandbox)
        if record.exit is None:
            found = await spawner.recover(sandbox, _handle_of(record))
            if isinstance(found, Handle):
                await spawner.destroy(sandbox, found)
                ended.append(record.key)
    return ended


def _handle_of(record: Record) -> Handle | None:
    return None if record.handle is None else _decode_handle(record.handle)
