"""What is written down about attempts, in groups.

Two places remember: the state folder (handles and exits, so that a successor finds what runs) and the queue (events
and states, so that the hub hears of it). Every attempt writes to both several times, hundreds of attempts do so at
once, and each kind of writing goes through one batcher. The order between the kinds is the attempt's own business: it
waits for one before it asks for the next.
"""

import asyncio
from collections.abc import Callable, Sequence

from shared.clock import Clock
from shared.messages import Exit
from spoke.queue.entries import End, Note
from spoke.queue.queue import Queue
from spoke.state.handles import Handles, Key
from spoke.work.batching import Batcher


class Ledger:
    """Each method returns a future; `run` is one owned task. Raises through `run`: FencedError, or a broken disk."""

    def __init__(
        self, queue: Queue, handles: Handles, now: Clock, *, on_events: Callable[[], None]
    ) -> None:
        """`on_events` is called after events were appended to the queue."""
        self._queue = queue
        self._handles = handles
        self._now = now
        self._on_events = on_events
        self._hold: Batcher[tuple[Key, bytes], None] = Batcher("hold", self._send_hold)
        self._ended: Batcher[tuple[Key, Exit], None] = Batcher("ended", self._send_ended)
        self._forget: Batcher[Key, None] = Batcher("forget", self._send_forget)
        self._started: Batcher[Note, bool] = Batcher("started", self._send_started)
        self._finish: Batcher[End, bool] = Batcher("finish", self._send_finish)
        self._hand_back: Batcher[Note, bool] = Batcher("hand_back", self._send_hand_back)

    async def run(self) -> None:
        """Write, for ever."""
        async with asyncio.TaskGroup() as group:
            for batcher in (self._hold, self._ended, self._forget):
                group.create_task(batcher.run())
            for batcher in (self._started, self._finish, self._hand_back):
                group.create_task(batcher.run())

    def hold(self, key: Key, handle: bytes) -> "asyncio.Future[None]":
        """Make the handle durable."""
        return self._hold.submit((key, handle))

    def ended(self, key: Key, end: Exit) -> "asyncio.Future[None]":
        """Make the exit durable."""
        return self._ended.submit((key, end))

    def forget(self, key: Key) -> "asyncio.Future[None]":
        """Drop intent, handle and exit: the queue has the outcome."""
        return self._forget.submit(key)

    def started(self, note: Note) -> "asyncio.Future[bool]":
        """Say that the agent runs; False where the fence is stale."""
        return self._started.submit(note)

    def finish(self, end: End) -> "asyncio.Future[bool]":
        """Say how the attempt ended; False where the fence is stale."""
        return self._finish.submit(end)

    def hand_back(self, note: Note) -> "asyncio.Future[bool]":
        """Give back an attempt that never ran; False where the fence is stale."""
        return self._hand_back.submit(note)

    async def _send_hold(self, items: Sequence[tuple[Key, bytes]]) -> list[None]:
        await self._handles.hold(items)
        return [None] * len(items)

    async def _send_ended(self, items: Sequence[tuple[Key, Exit]]) -> list[None]:
        await self._handles.ended(items)
        return [None] * len(items)

    async def _send_forget(self, items: Sequence[Key]) -> list[None]:
        await self._handles.forget(items)
        return [None] * len(items)

    async def _send_started(self, items: Sequence[Note]) -> Sequence[bool]:
        return self._said(await self._queue.started(items, self._now()))

    async def _send_finish(self, items: Sequence[End]) -> Sequence[bool]:
        return self._said(await self._queue.finish(items, self._now()))

    async def _send_hand_back(self, items: Sequence[Note]) -> Sequence[bool]:
        return self._said(await self._queue.hand_back(items, self._now()))

    def _said(self, results: Sequence[bool]) -> Sequence[bool]:
        self._on_events()
        return results
