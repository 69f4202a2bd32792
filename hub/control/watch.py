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
from shared.errors import UnavailableError
from shared.ids import uuid7
from shared.lifecycle import ENDED
from shared.messages import LogChunk, LogKind, LogStream, Query, Reply, Status, Tail
from shared.trust import TO_READER, SpokeTrust, encode_item, open_report, seal_commands

log = structlog.get_logger()

LEASE_MS: Final = 30_000
RENEW_S: Final = 10.0
# A tail that says nothing for this long is asked again: the link may have been away.
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
        self, bus: Bus, reader: Reader, seal: Seal, trust_of: TrustOf, fanout: Fanout, clock: Callable[[], int],
        *, reader_id: str, suspect_ms: int,
    ) -> None:  # fmt: skip
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
        """Yield an agent's output from a position on, over all generations from `gen`, and what is missing of it."""
        at = LogPiece(gen=gen, attempt=attempt, offset=offset, kind="data")
        with self._fanout.watching(agent.id) as changed:
            while True:
                changed.clear()
                agent = self._reader.run(lambda c: agents.find(c, agent.tenant, agent.id))
                placed = next((p for p in self._placements(agent) if p.gen >= at.gen), None)
                if placed is None:
                    if agent.state in ENDED or not follow:
                        break
                    await changed.wait()
                    continue
                if placed.gen > at.gen:
                    at = LogPiece(gen=placed.gen, attempt=1, offset=0, kind="data")
                done = False
                async for piece in self._tail_of(agent, placed, at, follow=follow):
                    if piece.kind == "end":
                        done = True
                        break
                    at = piece
                    yield piece
                if not done and not follow:
                    return
                if done:
                    at = LogPiece(gen=placed.gen + 1, attempt=1, offset=0, kind="data")
        yield LogPiece(
            gen=at.gen, attempt=at.attempt, offset=at.offset, kind="end", reason=agent.state.value
        )

    async def _tail_of(
        self, agent: Agent, placed: Placement, at: LogPiece, *, follow: bool
    ) -> AsyncIterator[LogPiece]:
        """Yield one generation's output; ends with an `end` piece, or without one when its spoke went away."""
        if not self._is_online(placed.spoke):
            yield _absent(at, placed.spoke)
            if follow:
                await self._until_online(placed.spoke)
            return
        tail = Tail(
            id=uuid7(self._clock()), actor=self._seal.hub, tenant=agent.tenant, trace=agent.trace, agent=agent.id,
            gen=placed.gen, attempt=at.attempt, offset=at.next_offset, lease_ms=LEASE_MS, follow=follow,
            reader=self._reader_id,
        )  # fmt: skip
        chunks: asyncio.Queue[LogChunk] = asyncio.Queue(MAX_PIECES_WAITING)
        self._tails[tail.id] = chunks
        where = {LogStream.OUT: (at.attempt, at.next_offset), LogStream.ERR: (at.attempt, 0)}
        try:
            await self._ask(placed.spoke, tail)
            while True:
                chunk = await self._next_chunk(chunks, tail, placed.spoke)
                if chunk is None:
                    return
                piece = _piece(chunk)
                if piece.kind in ("data", "gap"):
                    attempt, expected = where[piece.stream]
                    if piece.attempt == attempt and piece.offset < expected:
                        continue
                    if (
                        piece.attempt == attempt
                        and piece.offset > expected
                        and piece.kind == "data"
                    ):
                        return  # one was lost on the way: ask again from where we are
                    length = chunk.length if piece.kind == "gap" else len(piece.data)
                    where[piece.stream] = (piece.attempt, piece.offset + length)
                yield piece
                if piece.kind == "end":
                    return
        except UnavailableError:
            yield _absent(at, placed.spoke)
        finally:
            del self._tails[tail.id]

    async def _next_chunk(
        self, chunks: asyncio.Queue[LogChunk], tail: Tail, spoke: str
    ) -> LogChunk | None:
        """Return the next chunk, renewing the lease while there is none; None when the spoke went away."""
        while True:
            try:
                async with asyncio.timeout(RENEW_S):
                    return await chunks.get()
            except TimeoutError:
                if not self._is_online(spoke):
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

    def _is_online(self, spoke: str) -> bool:
        return self._reader.run(lambda c: spokes.find(c, spoke)).is_online(
            self._clock(), self._suspect_ms
        )


def _absent(at: LogPiece, spoke: str) -> LogPiece:
    reason = f"spoke {spoke} is away; its output is kept there"
    return LogPiece(
        gen=at.gen, attempt=at.attempt, offset=at.next_offset, kind="absent", reason=reason
    )


_KINDS: Final[dict[LogKind, PieceKind]] = {
    LogKind.DATA: "data",
    LogKind.GAP: "gap",
    LogKind.ATTEMPT_END: "attempt_end",
    LogKind.END: "end",
}


def _piece(chunk: LogChunk) -> LogPiece:
    return LogPiece(
        gen=chunk.gen,
        attempt=chunk.attempt,
        offset=chunk.offset,
        kind=_KINDS[chunk.kind],
        stream=chunk.stream,
        data=chunk.data,
        reason=chunk.reason
        or (f"{chunk.length} bytes are gone" if chunk.kind is LogKind.GAP else ""),
    )
