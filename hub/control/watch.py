"""Watch: live questions to a spoke. Status and Tail change nothing, so they need no outbox: a lost one is asked again.

Answers come on this process's own subject, signed by the spoke, and are matched by the id of the question. A stream of
output is followed by position (attempt, byte offset), so a piece that was lost on the way is noticed and asked for
again from there, one that came twice is left out, and what cannot be had is said: `gap`, `absent`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

import structlog

from hub.control.dispatch import Seal, command_header
from hub.control.fanout import Fanout
from hub.control.watch_place import LogPiece, Place, is_unknown
from hub.store import agents, placements, spokes
from hub.store.agents import Agent
from hub.store.placements import Placement
from hub.store.writer import Reader
from shared import subjects
from shared.bus import Bus
from shared.clock import Clock
from shared.envelope import RefusalError
from shared.errors import UnavailableError
from shared.ids import uuid7
from shared.lifecycle import ENDED
from shared.messages import LogChunk, Query, Reply, Status, Tail
from shared.trust import TO_READER, SpokeTrust, encode_item, open_report, seal_commands

log = structlog.get_logger()

LEASE_MS: Final = 30_000
RENEW_S: Final = 10.0
# More than this is dropped here, noticed by its offset, and asked for again.
MAX_PIECES_WAITING: Final = 512
# Between asking again for what was lost, or looking again whether a spoke is back.
AGAIN_S: Final = 0.1

TrustOf = Callable[[str], SpokeTrust | None]
OnRefusal = Callable[[str, RefusalError], None]


class Watch:
    """The questions of this hub process. `listen` once, after the bus is there."""

    def __init__(
        self,
        bus: Bus,
        reader: Reader,
        seal: Seal,
        *,
        trust_of: TrustOf,
        on_refusal: OnRefusal,
        fanout: Fanout,
        clock: Clock,
        reader_id: str,
        suspect_ms: int,
    ) -> None:
        self._bus = bus
        self._reader = reader
        self._seal = seal
        self._trust_of = trust_of
        self._on_refusal = on_refusal
        self._fanout = fanout
        self._clock = clock
        self._reader_id = reader_id
        self._suspect_ms = suspect_ms
        # By (spoke, id of the question): nobody answers what another one was asked.
        self._replies: dict[tuple[str, str], asyncio.Future[Reply]] = {}
        self._tails: dict[tuple[str, str], asyncio.Queue[LogChunk | None]] = {}

    async def listen(self) -> None:
        await self._bus.listen(subjects.logs_for(self._reader_id), self._on_answer)

    def renew(self, spoke: str) -> None:
        """Ask a spoke again for all that is followed there: it said hello, so its daemon may know of none of it."""
        for (of, _), chunks in self._tails.items():
            if of == spoke and not chunks.full():
                chunks.put_nowait(None)

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
        self._replies[spoke, item.id] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(spoke, item)
                return await future, ""
        except TimeoutError:
            return None, f"spoke {spoke} did not answer within {timeout_s:g} s"
        except UnavailableError as error:
            return None, str(error)
        finally:
            del self._replies[spoke, item.id]

    async def tail(
        self, agent: Agent, *, gen: int, attempt: int, offset: int, follow: bool
    ) -> AsyncGenerator[LogPiece]:
        """Yield an agent's output from a position on, over all generations, and say what is missing of it."""
        place = Place(gen, attempt, offset)
        with self._fanout.watching(agent.id) as changed:
            while True:
                changed.clear()
                agent = self._again(agent)
                placed = self._with_output(agent, place.gen)
                if placed is None:
                    if agent.state in ENDED or not follow:
                        break
                    await changed.wait()
                    continue
                place.start(placed.gen)
                pieces = self._tail_of(agent, placed, place, follow=follow)
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
                        if piece.kind == "absent" and not follow:
                            return
                if place.gen == placed.gen:
                    await self._until_online(placed.spoke)
        # `place` stands behind the last generation by now; what ended is the agent as it is.
        yield LogPiece(
            gen=agent.gen,
            attempt=agent.attempt,
            offset=place.offset,
            kind="end",
            reason=agent.state.value,
        )

    def _with_output(self, agent: Agent, gen: int) -> Placement | None:
        """Return the next generation that a spoke accepted; one that was refused has no output."""
        return next(
            (p for p in self._placements(agent) if p.gen >= gen and p.accepted_ms is not None),
            None,
        )

    async def _tail_of(
        self, agent: Agent, placed: Placement, place: Place, *, follow: bool
    ) -> AsyncGenerator[LogPiece]:
        """Yield one generation's output and move `place` along; past its end, `place` is in the next generation.

        Ends before that where a chunk was lost: ask again from where `place` is.
        """
        away = f"spoke {placed.spoke} is away; its output is kept there"
        if not self._is_online(placed.spoke):
            yield place.piece("absent", away)
            return
        tail = Tail(
            id=uuid7(self._clock()), actor=self._seal.hub, tenant=agent.tenant, trace=agent.trace, agent=agent.id,
            gen=placed.gen, attempt=place.attempt, offset=place.offset, lease_ms=LEASE_MS, follow=follow,
            reader=self._reader_id,
        )  # fmt: skip
        chunks: asyncio.Queue[LogChunk | None] = asyncio.Queue(MAX_PIECES_WAITING)
        self._tails[placed.spoke, tail.id] = chunks
        lease = _Lease()
        try:
            while place.gen == placed.gen:
                chunk = await self._next_chunk(chunks, tail, placed.spoke, lease)
                if chunk is None:
                    yield place.piece("absent", away)
                    return
                if not place.follows(chunk):
                    return
                if is_unknown(chunk) and self._again(agent).started_ms is not None:
                    yield place.piece(
                        "gap", f"spoke {placed.spoke} has no output of this generation any more"
                    )
                piece = place.take(chunk)
                if piece is not None:
                    yield piece
        except _AskAgainError:
            return
        except UnavailableError as error:
            yield place.piece("absent", str(error))
        finally:
            del self._tails[placed.spoke, tail.id]

    async def _next_chunk(
        self, chunks: asyncio.Queue[LogChunk | None], tail: Tail, spoke: str, lease: "_Lease"
    ) -> LogChunk | None:
        """Return the next chunk, having renewed the lease when it was time to; None when the spoke is away.

        Raises _AskAgainError when this tail is of no use any more.
        """
        while True:
            if lease.left_s() <= 0:
                if not self._is_online(spoke):
                    return None
                await self._ask(spoke, tail)
                lease.renew()
            try:
                async with asyncio.timeout(lease.left_s() if tail.follow else RENEW_S):
                    chunk = await chunks.get()
            except TimeoutError:
                if not tail.follow:
                    return None
                continue
            if chunk is None:
                raise _AskAgainError
            return chunk

    async def _until_online(self, spoke: str) -> None:
        """Wait a moment, and then for as long as the spoke is away."""
        await asyncio.sleep(AGAIN_S)
        while not self._is_online(spoke):  # noqa: ASYNC110 - nothing tells of time that passes
            await asyncio.sleep(AGAIN_S)

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
        try:
            report = open_report(data, TO_READER, trust)
        except RefusalError as error:
            self._on_refusal(spoke, error)
            return
        for item in report.items:
            match item:
                case Reply():
                    future = self._replies.get((spoke, item.cmd))
                    if future is not None and not future.done():
                        future.set_result(item)
                case LogChunk():
                    self._take(spoke, item)
                case _:
                    continue

    def _take(self, spoke: str, chunk: LogChunk) -> None:
        """Keep a chunk for its reader; what does not fit is lost here, and asked for again once the reader is there."""
        waiting = self._tails.get((spoke, chunk.cmd))
        if waiting is not None and not waiting.full():
            # The last place is for the word that something was lost: nothing else may follow that shows it.
            waiting.put_nowait(chunk if waiting.qsize() < waiting.maxsize - 1 else None)

    def _placements(self, agent: Agent) -> list[Placement]:
        return self._reader.run(lambda c: placements.of_agent(c, agent.id))

    def _again(self, agent: Agent) -> Agent:
        return self._reader.run(lambda c: agents.find(c, agent.tenant, agent.id))

    def _is_online(self, spoke: str) -> bool:
        return self._reader.run(lambda c: spokes.find(c, spoke)).is_online(
            self._clock(), self._suspect_ms
        )


class _AskAgainError(Exception):
    """The spoke's daemon is a new one, or a chunk was lost here: ask anew from where the reader stands."""


class _Lease:
    """When to ask for the same tail again: by the clock, since a stream that never pauses would lose its lease too."""

    def __init__(self) -> None:
        self._until = 0.0

    def left_s(self) -> float:
        return self._until - asyncio.get_running_loop().time()

    def renew(self) -> None:
        self._until = asyncio.get_running_loop().time() + RENEW_S
