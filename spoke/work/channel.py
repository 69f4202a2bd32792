"""Answers to readers: the state of an agent now, and its output for as long as somebody looks.

A reader is one hub process, named in the signed Status or Tail; what it asked for is published, signed, on its own
subject. A Tail has a lease: the reader renews it by sending the same one again, and a reader that is gone costs
nothing after that. Positions are the reader's business, so a tail that is cut off is simply asked for anew from where
the reader stands, and what NATS lost on the way is asked for again in the same manner.

Everything is bounded: how many tails, how many questions wait, how much is on its way before NATS has confirmed it.
"""

import asyncio
from collections import deque
from typing import Final

import structlog

from shared import subjects
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import UnavailableError
from shared.messages import LogChunk, LogKind, LogStream, Reply, Status, Tail
from spoke.core.standing import Standing
from spoke.queue.queue import Queue
from spoke.state.spools import Spools
from spoke.work.logs import Look, Reading, Where, noted_cap
from spoke.work.loop import Loop

log = structlog.get_logger()

MOST_TAILS: Final = 256
# A renewal may be under way while the end is: it must not send everything again.
_MOST_ENDED: Final = 256
_MOST_QUESTIONS: Final = 256
_ANSWERERS: Final = 4
# What a follower of a live agent waits at most, on average half of it.
_LIVE_S: Final = 0.008
# While nothing of it is alive here, looking asks Valkey.
_AWAIT_S: Final = 0.1
_AGAIN_S: Final = 0.25
# After so many bytes NATS must have confirmed them, before more is read.
_IN_FLIGHT_BYTES: Final = 512 * 1024


class _Watch:
    """One tail and how long its lease runs, in the event loop's time."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.until = 0.0


class Channel:
    """`ask` and `tail` from intake, `run` in one owned task."""

    def __init__(
        self,
        *,
        bus: Bus,
        standing: Standing,
        queue: Queue,
        spools: Spools,
        loop: Loop,
        now: Clock,
    ) -> None:
        self._bus = bus
        self._standing = standing
        self._queue = queue
        self._spools = spools
        self._loop = loop
        self._now = now
        self._questions: asyncio.Queue[Status] = asyncio.Queue(_MOST_QUESTIONS)
        self._new: asyncio.Queue[_Watch] = asyncio.Queue(MOST_TAILS)
        self._watches: dict[str, _Watch] = {}
        self._ended: deque[str] = deque(maxlen=_MOST_ENDED)

    def ask(self, status: Status) -> None:
        """Have a Status answered; dropped, as on a bad network, when too many wait."""
        try:
            self._questions.put_nowait(status)
        except asyncio.QueueFull:
            log.warning("status_dropped", waiting=_MOST_QUESTIONS)

    def tail(self, tail: Tail) -> None:
        """Begin a tail, or renew it; of no effect for one whose `end` was just sent.

        Beyond the bound it is dropped: the reader sees silence and asks again.
        """
        watch = self._watches.get(tail.id)
        if watch is None and tail.id in self._ended:
            return
        if watch is None:
            if len(self._watches) >= MOST_TAILS:
                log.warning("tail_dropped", tails=MOST_TAILS)
                return
            watch = self._watches[tail.id] = _Watch(tail)
            self._new.put_nowait(watch)
        watch.until = asyncio.get_running_loop().time() + tail.lease_ms / 1000

    async def run(self) -> None:
        """Answer, for ever. Raises FencedError."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_ANSWERERS):
                group.create_task(self._answer())
            while True:
                watch = await self._new.get()
                group.create_task(self._watch(watch))

    # --- Status ---------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        while True:
            status = await self._questions.get()
            try:
                reply = await self._reply(status)
                data = self._standing.seal([reply], self._now())
                await self._bus.publish(subjects.logs(self._standing.spoke, status.reader), data)
            except UnavailableError as error:
                log.warning("status_not_answered", error=str(error))

    async def _reply(self, status: Status) -> Reply:
        entry = await self._queue.look(status.agent)
        if entry is not None and entry.gen != status.gen:
            entry = None
        supervisor = self._loop.find(status.agent, status.gen)
        attempts = self._spools.attempts(status.agent, status.gen)
        attempt = entry.attempt if entry is not None else max(attempts, default=0)
        sizes = (
            self._spools.size(status.agent, status.gen, attempt, stream) for stream in LogStream
        )
        state = "" if entry is None else entry.state
        return Reply(
            cmd=status.id,
            agent=status.agent,
            gen=status.gen,
            known=entry is not None,
            # A lease is the spoke's own affair: until the agent runs, it is queued.
            state="queued" if state == "leased" else state,
            attempt=attempt,
            fence=0 if entry is None else entry.fence,
            position=None if entry is None else entry.position,
            since=None if entry is None else entry.since,
            processes=0 if supervisor is None else await supervisor.processes(),
            output_bytes=sum(size or 0 for size in sizes),
        )

    # --- Tail -------------------------------------------------------------------------------------------

    async def _watch(self, watch: _Watch) -> None:
        tail = watch.tail
        reading = Reading(tail, self._spools, self._look_at(tail.agent, tail.gen))
        clock = asyncio.get_running_loop().time
        in_flight = 0
        try:
            while not reading.is_done and clock() < watch.until:
                try:
                    chunks = await reading.step()
                except UnavailableError:
                    await asyncio.sleep(_AGAIN_S)
                    continue
                if chunks:
                    in_flight = await self._ship(tail, chunks, in_flight)
                else:
                    await self._rest(tail, reading.where)
        finally:
            del self._watches[tail.id]
            if reading.is_done:
                self._ended.append(tail.id)

    async def _rest(self, tail: Tail, where: Where) -> None:
        await asyncio.sleep(_LIVE_S)
        until = asyncio.get_running_loop().time() + _AWAIT_S
        while where is not Where.LIVE and asyncio.get_running_loop().time() < until:
            if self._loop.find(tail.agent, tail.gen) is not None:
                return
            await asyncio.sleep(_LIVE_S)

    async def _ship(self, tail: Tail, chunks: list[LogChunk], in_flight: int) -> int:
        """Publish one envelope; returns how many bytes NATS has not confirmed since."""
        data = self._standing.seal(list(chunks), self._now())
        ends = any(chunk.kind is LogKind.END for chunk in chunks)
        try:
            await self._bus.publish(subjects.logs(self._standing.spoke, tail.reader), data)
            in_flight += len(data)
            if in_flight >= _IN_FLIGHT_BYTES or ends:
                await self._bus.flush()
                return 0
        except UnavailableError as error:
            # Whether it arrived is unknown: the reader sees the hole in the offsets and asks from there.
            log.warning("chunk_not_sent", error=str(error))
            await asyncio.sleep(_AGAIN_S)
            return 0
        return in_flight

    def _look_at(self, agent: str, gen: int) -> Look:
        async def look(attempt: int) -> tuple[Where, int | None]:
            supervisor = self._loop.find(agent, gen)
            if supervisor is None or supervisor.sandbox.attempt != attempt:
                cap = noted_cap(self._spools.folder(agent, gen, attempt))
                return await self._where(agent, gen, attempt), cap
            cap = supervisor.sandbox.spec.limits.output_bytes
            return (Where.GONE if supervisor.is_gone else Where.LIVE), cap

        return look

    async def _where(self, agent: str, gen: int, attempt: int) -> Where:  # noqa: PLR0911 - one line per case
        """How it stands with an attempt that nobody supervises here."""
        known = self._spools.attempts(agent, gen)
        supervisor = self._loop.find(agent, gen)
        if supervisor is not None:
            if supervisor.sandbox.attempt < attempt:
                return Where.AWAITED
            return Where.GONE if attempt in known else Where.MISSING
        entry = await self._queue.look(agent)
        if entry is not None and entry.gen == gen:
            is_leased = entry.state in ("leased", "running")
            if attempt > entry.attempt or (attempt == entry.attempt and is_leased):
                return Where.AWAITED
            return Where.GONE if attempt in known else Where.MISSING
        if attempt in known:
            return Where.GONE
        if any(later > attempt for later in known):
            return Where.MISSING
        return Where.CLOSED if known else Where.UNKNOWN
