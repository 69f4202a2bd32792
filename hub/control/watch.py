"""Watch: live questions to a spoke. Status and Tail change nothing, so they need no outbox: a lost one is asked again.

Answers come on this process's own subject, signed by the spoke, and are matched by the id of the question. A stream of
output is followed by position (attempt, byte offset), so a piece that was lost on the way is noticed and asked for
again from there, one that came twice is left out, and what cannot be had is said: `gap`, `absent`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

import msgspec
import structlog

from hub.control.dispatch import Seal, command_header
from hub.control.fanout import Fanout
from hub.store import agents, placements, spokes
from hub.store.agents import Agent
from hub.store.placements import Placement
from hub.store.writer import Reader
from shared import subjects
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import UnavailableError
from shared.ids import uuid7
from shared.lifecycle import ENDED
from shared.messages import LogChunk, LogKind, LogStream, Query, Reply, Status, Tail
from shared.trust import TO_READER, SpokeTrust, encode_item, open_report, seal_commands

log = structlog.get_logger()

LEASE_MS: Final = 30_000
RENEW_S: Final = 10.0
# More than this is dropped here, noticed by its offset, and asked for again.
MAX_PIECES_WAITING: Final = 512

PieceKind = Literal["data", "gap", "attempt_end", "absent", "end"]
TrustOf = Callable[[str], SpokeTrust | None]


class LogPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an agent's output, or a word about it; `next_offset` is where the attempt goes on."""

    gen: int
    attempt: int
    offset: int
    kind: PieceKind
    stream: LogStream = LogStream.OUT
    data: bytes = b""
    reason: str = ""

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


class Watch:
    """The questions of this hub process. `listen` once, after the bus is there."""

    def __init__(
        self,
        bus: Bus,
        reader: Reader,
        seal: Seal,
        *,
        trust_of: TrustOf,
        fanout: Fanout,
        clock: Clock,
        reader_id: str,
        suspect_ms: int,
    ) -> None:
        self._bus = bus
        self._reader = reader
        self._seal = seal
        self._trust_of = trust_of
        self._fanout = fanout
        self._clock = clock
        self._reader_id = reader_id
        self._suspect_ms = suspect_ms
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._tails: dict[str, asyncio.Queue[LogChunk]] = {}

    async def listen(self) -> None:
        await self._bus.listen(subjects.logs_for(self._reader_id), self._on_answer)

    async def status(self, agent: Agent, timeout_s: float) -> tuple[Reply | None, str]:
        """Ask the agent's spoke what it knows right now: the reply, or None and why there is none."""
        placed = self._placements(agent)
        if not placed:
            return None, "not placed yet"
        spoke = placed[-1].spoke
        if not self._is_online(spoke):
            return None, f"spoke {spoke} is away"
        now_ms = self._clock()
        item = Status(
            id=uuid7(now_ms), actor=self._seal.hub, tenant=agent.tenant, trace=agent.trace, agent=agent.id,
            gen=placed[-1].gen, reader=self._reader_id,
        )  # fmt: skip
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[item.id] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(spoke, item)
                return await future, ""
        except TimeoutError:
            return None, f"spoke {spoke} did not answer within {timeout_s:g} s"
        except UnavailableError as error:
            return None, str(error)
        finally:
            del self._replies[item.id]

    async def tail(
        self, agent: Agent, *, gen: int, attempt: int, offset: int, follow: bool
    ) -> AsyncIterator[LogPiece]:
        """Yield an agent's output from a position on, over all generations, and say what is missing of it."""
        place = _Place(gen, attempt, offset)
        with self._fanout.watching(agent.id) as changed:
            while True:
                changed.clear()
                agent = self._again(agent)
                placed = next((p for p in self._placements(agent) if p.gen >= place.gen), None)
                if placed is None or placed.accepted_ms is None:
                    if agent.state in ENDED or not follow:
                        break
                    await changed.wait()
                    continue
                place.start(placed.gen)
                async for piece in self._tail_of(agent, placed, place, follow=follow):
                    yield piece
                if place.gen > placed.gen:
                    continue
                if not follow:
                    return
                await self._until_online(placed.spoke)
        yield place.piece("end", agent.state.value)

    async def _tail_of(
        self, agent: Agent, placed: Placement, place: "_Place", *, follow: bool
    ) -> AsyncIterator[LogPiece]:
        """Yield one generation's output and move `place` along; past its end, `place` is in the next generation."""
        away = f"spoke {placed.spoke} is away; its output is kept there"
        if not self._is_online(placed.spoke):
            yield place.piece("absent", away)
            return
        tail = Tail(
            id=uuid7(self._clock()), actor=self._seal.hub, tenant=agent.tenant, trace=agent.trace, agent=agent.id,
            gen=placed.gen, attempt=place.attempt, offset=place.offset, lease_ms=LEASE_MS, follow=follow,
            reader=self._reader_id,
        )  # fmt: skip
        chunks: asyncio.Queue[LogChunk] = asyncio.Queue(MAX_PIECES_WAITING)
        self._tails[tail.id] = chunks
        try:
            await self._ask(placed.spoke, tail)
            while place.gen == placed.gen:
                chunk = await self._next_chunk(chunks, tail, placed.spoke, follow=follow)
                if chunk is None:
                    yield place.piece("absent", away)
                    return
                if not place.follows(chunk):
                    return  # one was lost on the way: ask again from where we are
                piece = place.take(chunk)
                if piece is not None:
                    yield piece
        except UnavailableError:
            yield place.piece("absent", away)
        finally:
            del self._tails[tail.id]

    async def _next_chunk(
        self, chunks: asyncio.Queue[LogChunk], tail: Tail, spoke: str, *, follow: bool
    ) -> LogChunk | None:
        """Return the next chunk, renewing the lease while there is none; None when the spoke went away."""
        while True:
            try:
                async with asyncio.timeout(RENEW_S):
                    return await chunks.get()
            except TimeoutError:
                if not follow or not self._is_online(spoke):
                    return None
                await self._ask(spoke, tail)

    async def _until_online(self, spoke: str) -> None:
        with self._fanout.watching(None) as changed:
            while not self._is_online(spoke):
                changed.clear()
                try:
                    async with asyncio.timeout(1):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def _ask(self, spoke: str, item: Query) -> None:
        header = self._reader.run(
            lambda c: command_header(c, spokes.find(c, spoke), self._seal, self._clock())
        )
        await self._bus.publish(
            subjects.commands(spoke), seal_commands(header, [encode_item(item)], self._seal.signer)
        )

    async def _on_answer(self, subject: str, data: bytes) -> None:
        spoke = subjects.spoke_of(subject)
        trust = self._trust_of(spoke)
        if trust is None:
            return
        for item in open_report(data, TO_READER, trust).items:
            match item:
                case Reply():
                    future = self._replies.get(item.cmd)
                    if future is not None and not future.done():
                        future.set_result(item)
                case LogChunk():
                    self._take(item)
                case _:
                    continue

    def _take(self, chunk: LogChunk) -> None:
        """Keep a chunk for its reader; what does not fit is lost here, and noticed by its offset."""
        waiting = self._tails.get(chunk.cmd)
        if waiting is not None and not waiting.full():
            waiting.put_nowait(chunk)

    def _placements(self, agent: Agent) -> list[Placement]:
        return self._reader.run(lambda c: placements.of_agent(c, agent.id))

    def _again(self, agent: Agent) -> Agent:
        return self._reader.run(lambda c: agents.find(c, agent.tenant, agent.id))

    def _is_online(self, spoke: str) -> bool:
        return self._reader.run(lambda c: spokes.find(c, spoke)).is_online(
            self._clock(), self._suspect_ms
        )


class _Place:
    """Where a reader stands: the generation, the attempt, and the next byte of each stream."""

    def __init__(self, gen: int, attempt: int, offset: int) -> None:
        self.gen = gen
        self.attempt = attempt
        self._next = {LogStream.OUT: offset, LogStream.ERR: 0}

    @property
    def offset(self) -> int:
        return self._next[LogStream.OUT]

    def start(self, gen: int) -> None:
        """Go to a generation, at its beginning if it is a later one."""
        if gen > self.gen:
            self.gen = gen
            self._begin(1)

    def follows(self, chunk: LogChunk) -> bool:
        """Tell whether nothing is missing before this chunk."""
        expected = self._next[chunk.stream] if chunk.attempt == self.attempt else 0
        return chunk.kind is not LogKind.DATA or chunk.offset <= expected

    def take(self, chunk: LogChunk) -> LogPiece | None:
        """Move past a chunk; returns what of it is new, or None."""
        if chunk.kind is LogKind.END:
            self.start(self.gen + 1)
            return None
        if chunk.attempt > self.attempt:
            self._begin(chunk.attempt)
        length = chunk.length if chunk.kind is LogKind.GAP else len(chunk.data)
        known = max(0, self._next[chunk.stream] - chunk.offset) if length else 0
        if chunk.attempt < self.attempt or (length and known >= length):
            return None
        if length:
            self._next[chunk.stream] = chunk.offset + length
        if chunk.kind is LogKind.ATTEMPT_END:
            self._begin(chunk.attempt + 1)
        return LogPiece(
            gen=chunk.gen, attempt=chunk.attempt, offset=chunk.offset + known, kind=_KINDS[chunk.kind],
            stream=chunk.stream, data=chunk.data[known:], reason=chunk.reason or _gap_text(chunk),
        )  # fmt: skip

    def piece(self, kind: PieceKind, reason: str) -> LogPiece:
        """Return a word about the stream at this place."""
        return LogPiece(
            gen=self.gen, attempt=self.attempt, offset=self.offset, kind=kind, reason=reason
        )

    def _begin(self, attempt: int) -> None:
        self.attempt = attempt
        self._next = {LogStream.OUT: 0, LogStream.ERR: 0}


def _gap_text(chunk: LogChunk) -> str:
    return f"{chunk.length} bytes are gone" if chunk.kind is LogKind.GAP else ""


_KINDS: Final[dict[LogKind, PieceKind]] = {
    LogKind.DATA: "data",
    LogKind.GAP: "gap",
    LogKind.ATTEMPT_END: "attempt_end",
}
