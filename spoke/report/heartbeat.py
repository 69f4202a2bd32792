"""Liveness with capacity, every ten seconds, and at once when something changed that the hub waits for.

Heartbeats are ordered by a counter that starts at the daemon's epoch, so it rises over restarts too. Each is a request:
the answer carries the hub's acknowledgement of events, and its absence costs nothing, the next one comes anyway. While
Valkey is away they go on, and say so: the hub then places nothing here, and operators see why.
"""

import asyncio
from typing import Final

import structlog

from shared.clock import Clock
from shared.errors import UnavailableError
from shared.messages import Heartbeat, QueueCounts
from spoke.core.standing import Standing
from spoke.queue.queue import Queue
from spoke.report.link import Link
from spoke.report.outbox import Outbox

log = structlog.get_logger()

# As fences: (epoch, n) in one number.
_PER_EPOCH: Final = 2**32
_MOST_WORDS: Final = 500
_UNKNOWN: Final = (QueueCounts(queued=0, running=0, retrying=0, dead=0), False, "0" * 64)


class Pulse:
    """Built by the daemon; `run` is its one task."""

    def __init__(
        self,
        *,
        queue: Queue,
        standing: Standing,
        link: Link,
        outbox: Outbox,
        policy: str,
        epoch: int,
        every_s: float,
        now: Clock,
    ) -> None:
        self._queue = queue
        self._standing = standing
        self._link = link
        self._outbox = outbox
        self._policy = policy
        self._counter = epoch * _PER_EPOCH
        self._every_s = every_s
        self._now = now
        self._due = asyncio.Event()
        self._known = _UNKNOWN

    def beat_now(self) -> None:
        """Let the next heartbeat come at once."""
        self._due.set()

    async def run(self) -> None:
        """Beat, for ever, once the hub has welcomed us. Ends by cancellation or FencedError."""
        while True:
            await self._outbox.welcomed()
            try:
                await self._beat()
            except UnavailableError as error:
                log.warning("waiting", what="heartbeat", error=str(error))
            try:
                async with asyncio.timeout(self._every_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()

    async def _beat(self) -> None:
        answer = await self._link.ask([await self._heartbeat()], timeout_s=self._every_s)
        if answer is not None and answer.header.inc == self._standing.incarnation:
            await self._outbox.acknowledge(answer.header.evt_ack)

    async def _heartbeat(self) -> Heartbeat:
        self._counter += 1
        trouble = await self._look()
        counts, full, inventory = self._known
        wanted = self._standing.wanted
        return Heartbeat(
            counter=self._counter,
            head_seq=self._queue.head_seq,
            counts=counts,
            full=full,
            paused=wanted.paused,
            cordoned=wanted.cordoned,
            rev=wanted.rev,
            inventory=inventory,
            policy=self._policy,
            trust_version=0,
            trouble=trouble,
            refusals=dict(self._standing.refusals),
        )

    async def _look(self) -> str:
        """Look at the queue; returns why that failed, and then what is known of it stays what it was."""
        try:
            counts = await self._queue.counts()
            full = await self._queue.almost_full()
            self._known = (counts, full, await self._queue.inventory())
        except UnavailableError as error:
            log.warning("waiting", what="heartbeat", error=str(error))
            return str(error)[:_MOST_WORDS]
        return ""
