"""Live questions over real NATS: Status and Tail, with chunks that are lost, doubled, out of order, or never come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hub.control import operate
from hub.control.hub import Hub
from hub.control.watch_place import LogPiece
from hub.store import agents
from hub.store.agents import Agent
from shared.lifecycle import State
from shared.messages import EventKind, LogChunk, LogKind, Spawn, Status, Tail
from shared.trust import TrustedItem
from tests.helpers.builders import STRANGER, log_chunk, reply
from tests.helpers.hubs import greeted, hub_settings, order, peer_of, until
from tests.helpers.spoke_peer import SpokePeer
from tests.helpers.spoke_site import NatsServer


@asynccontextmanager
async def wheel(folder: Path, **timing: float) -> AsyncIterator[tuple[Hub, SpokePeer]]:
    server = NatsServer(folder)
    server.start()
    try:
        settings = hub_settings(folder, server.url, "zurich", **timing)
        async with Hub.open(settings) as hub, peer_of(settings) as zurich:
            yield hub, await greeted(hub, zurich)
    finally:
        server.kill()


def look(hub: Hub, agent: str) -> Agent:
    return hub.reader.run(lambda c: agents.find(c, "default", agent))


async def placed(hub: Hub, zurich: SpokePeer, *told: EventKind) -> tuple[str, TrustedItem[Any]]:
    """An agent at the spoke, of which this much was told, and its Spawn."""
    (result,) = await hub.spawn([order()])
    command = await zurich.next_command()
    if told:
        await zurich.ask([zurich.event(kind, command) for kind in told])
    return result.agent.id, command


async def running(hub: Hub, zurich: SpokePeer) -> tuple[str, TrustedItem[Any]]:
    return await placed(hub, zurich, EventKind.QUEUED, EventKind.RUNNING)


class Reader:
    """Reads an agent's output in a task of its own and keeps what came."""

    def __init__(self, hub: Hub, agent: str, **place: Any) -> None:
        self.hub = hub
        self.pieces: list[LogPiece] = []
        values = {"gen": 1, "attempt": 1, "offset": 0, "follow": True} | place
        self.task = asyncio.create_task(self._read(hub.tail(look(hub, agent), **values)))

    async def _read(self, pieces: Any) -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                self.pieces.append(piece)

    @property
    def text(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    @property
    def kinds(self) -> list[str]:
        return [piece.kind for piece in self.pieces]

    async def ends(self) -> list[str]:
        async with asyncio.timeout(5):
            await self.task
        assert self.hub._watch is not None
        assert not self.hub._watch._tails
        return self.kinds


async def next_tail(zurich: SpokePeer) -> Tail:
    while True:
        item = (await zurich.next_command()).item
        if isinstance(item, Tail):
            return item


def chunk(tail: Tail, offset: int, data: bytes = b"", **changes: Any) -> LogChunk:
    values = {"cmd": tail.id, "agent": tail.agent, "gen": tail.gen, "offset": offset, "data": data}
    return log_chunk(**values | changes)


def attempt_end(tail: Tail, offset: int, attempt: int = 1) -> LogChunk:
    return chunk(tail, offset, kind=LogKind.ATTEMPT_END, attempt=attempt)


def end(tail: Tail, attempt: int = 2, **changes: Any) -> LogChunk:
    return chunk(tail, **{"offset": 0, "kind": LogKind.END, "attempt": attempt} | changes)


# --- status ------------------------------------------------------------------------------------------


async def test_a_status_is_the_spokes_own_answer(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        asked = asyncio.create_task(hub.ask_status(look(hub, agent)))
        status = (await zurich.next_command()).item
        assert isinstance(status, Status)
        answer = reply(cmd=status.id, agent=agent, processes=7)
        await zurich.answer(status, answer, answer)
        assert await asked == (answer, "")
        assert not hub._watch._replies


async def test_a_status_that_nobody_answers_says_so(tmp_path: Path):
    async with wheel(tmp_path, status_s=0.1) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        answer, why = await hub.ask_status(look(hub, agent))
        assert answer is None
        assert why == "spoke zurich did not answer within 0.1 s"
        assert not hub._watch._replies


async def test_a_forged_reply_is_counted_and_not_believed(tmp_path: Path):
    async with wheel(tmp_path, status_s=0.3) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        asked = asyncio.create_task(hub.ask_status(look(hub, agent)))
        status = (await zurich.next_command()).item
        await zurich.answer(status, reply(cmd=status.id, agent=agent), by=STRANGER)
        assert (await asked)[0] is None
        assert b'felloe_refusals_total{refusal="unknown_key"} 1.0' in hub.metrics_text()


async def test_a_status_of_what_is_not_placed_or_whose_spoke_is_away_is_not_asked(tmp_path: Path):
    async with wheel(tmp_path, suspect_s=0.5) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        await asyncio.sleep(0.6)
        assert await hub.ask_status(look(hub, agent)) == (None, "spoke zurich is away")
        (result,) = await hub.spawn([order()])
        assert await hub.ask_status(result.agent) == (None, "not placed yet")


# --- tail --------------------------------------------------------------------------------------------


async def test_output_is_followed_until_the_agent_ended(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        reader = Reader(hub, agent)
        tail = await next_tail(zurich)
        await zurich.answer(
            tail, chunk(tail, 0, b"one "), chunk(tail, 4, b"two"), attempt_end(tail, 7), end(tail)
        )
        await until(lambda: reader.kinds == ["data", "data", "attempt_end"])
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        assert await reader.ends() == ["data", "data", "attempt_end", "end"]
        assert reader.text == b"one two"
        assert reader.pieces[-1].reason == "succeeded"


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize(
    "lost", [1, 2, 3], ids=["data", "the last data", "the end of the attempt"]
)
async def test_what_is_lost_on_the_way_is_asked_for_again(tmp_path: Path, follow: bool, lost: int):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        reader = Reader(hub, agent, follow=follow)
        tail = await next_tail(zurich)
        chunks = [
            chunk(tail, 0, b"ab"),
            chunk(tail, 2, b"cd"),
            chunk(tail, 4, b"ef"),
            attempt_end(tail, 6),
            end(tail),
        ]
        await zurich.answer(tail, *chunks[:lost], *chunks[lost + 1 :])
        again = await next_tail(zurich)
        assert (again.attempt, again.offset) == (1, min(2 * lost, 6))
        rest = [chunk(again, n, b"abcdef"[n : n + 2]) for n in range(again.offset, 6, 2)]
        await zurich.answer(again, *rest, attempt_end(again, 6), end(again))
        assert (await reader.ends())[-2:] == ["attempt_end", "end"]
        assert reader.text == b"abcdef"


async def test_what_comes_twice_or_out_of_order_is_read_once_and_in_order(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        reader = Reader(hub, agent)
        tail = await next_tail(zurich)
        await zurich.answer(
            tail, *[chunk(tail, 0, b"ab")] * 3, chunk(tail, 4, b"ef"), chunk(tail, 2, b"cd")
        )
        again = await next_tail(zurich)
        assert again.offset == 2
        await zurich.answer(tail, chunk(tail, 2, b"of an old tail"))
        whole = [
            chunk(again, 0, b"abcd"),
            chunk(again, 3, b"def"),
            attempt_end(again, 6),
            end(again),
        ]
        await zurich.answer(again, *whole)
        await reader.ends()
        assert reader.text == b"abcdef"


async def test_a_reader_goes_on_from_its_place(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        reader = Reader(hub, agent, attempt=2, offset=3, follow=False)
        tail = await next_tail(zurich)
        assert (tail.gen, tail.attempt, tail.offset, tail.follow) == (1, 2, 3, False)
        await zurich.answer(
            tail, chunk(tail, 3, b"def", attempt=2), end(tail, offset=6, reason="so_far")
        )
        assert await reader.ends() == ["data", "end"]
        assert reader.pieces[0].next_offset == 6


async def test_a_spoke_that_is_away_is_said_and_waited_for(tmp_path: Path):
    async with wheel(tmp_path, suspect_s=0.5) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await asyncio.sleep(0.6)
        once, follower = Reader(hub, agent, follow=False), Reader(hub, agent)
        assert await _kinds_of(once) == ["absent"]
        await until(lambda: follower.kinds == ["absent"])
        await zurich.hello()
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        tail = await next_tail(zurich)
        await zurich.answer(tail, chunk(tail, 0, b"here"), attempt_end(tail, 4), end(tail))
        assert await follower.ends() == ["absent", "data", "attempt_end", "end"]


async def _kinds_of(reader: Reader) -> list[str]:
    async with asyncio.timeout(5):
        await reader.task
    return reader.kinds


async def test_what_a_spoke_no_longer_has_is_a_gap(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        reader = Reader(hub, agent, follow=False)
        tail = await next_tail(zurich)
        await zurich.answer(tail, end(tail, attempt=1, reason="unknown"))
        assert await reader.ends() == ["gap", "end"]


async def test_after_a_requeue_the_second_generation_follows_the_first(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await zurich.ask([zurich.event(EventKind.FAILED, command)])
        await hub.do(
            lambda c, now_ms: operate.requeue(
                c, "default", [agent], actor="me", reason="", now_ms=now_ms
            )
        )
        second = await zurich.next_command()
        await zurich.ask(
            [zurich.event(EventKind.QUEUED, second), zurich.event(EventKind.RUNNING, second)]
        )
        reader = Reader(hub, agent)
        first = await next_tail(zurich)
        await zurich.answer(first, chunk(first, 0, b"one"), attempt_end(first, 3), end(first))
        then = await next_tail(zurich)
        assert (first.gen, then.gen, then.attempt, then.offset) == (1, 2, 1, 0)
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, second)])
        await zurich.answer(then, chunk(then, 0, b"two"), attempt_end(then, 3), end(then))
        assert await reader.ends() == ["data", "attempt_end"] * 2 + ["end"]
        assert [(piece.gen, piece.data) for piece in reader.pieces if piece.data] == [
            (1, b"one"),
            (2, b"two"),
        ]


async def test_a_generation_that_was_refused_has_no_output_and_holds_up_nobody(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await placed(hub, zurich)
        reader = Reader(hub, agent)
        await zurich.ask([zurich.event(EventKind.REFUSED, command, reason="queue_full")])
        await zurich.heartbeat()
        second = await zurich.next_command()
        assert isinstance(second.item, Spawn)
        await zurich.ask(zurich.succeeded(second))
        tail = await next_tail(zurich)
        assert tail.gen == 2
        await zurich.answer(tail, chunk(tail, 0, b"x"), attempt_end(tail, 1), end(tail))
        assert await reader.ends() == ["data", "attempt_end", "end"]


async def test_a_follower_waits_for_the_placement_and_sees_the_end_of_what_never_ran(
    tmp_path: Path,
):
    async with wheel(tmp_path) as (hub, _):
        (result,) = await hub.spawn([order(hold=True)])
        agent = result.agent.id
        reader = Reader(hub, agent)
        await asyncio.sleep(0.05)
        assert not reader.pieces
        await hub.do(
            lambda c, now_ms: operate.kill(
                c, "default", agent, actor="me", grace_ms=None, reason="", now_ms=now_ms
            )
        )
        assert await reader.ends() == ["end"]
        assert look(hub, agent).state is State.KILLED


async def test_the_lease_is_renewed_also_while_output_flows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hub.control.watch.RENEW_S", 0.2)
    async with wheel(tmp_path) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        reader = Reader(hub, agent)
        tail = await next_tail(zurich)
        for n in range(12):
            await zurich.answer(tail, chunk(tail, n, b"x"))
            await asyncio.sleep(0.05)
        renewed = await next_tail(zurich)
        assert renewed == tail
        assert reader.text == b"x" * 12
        reader.task.cancel()
        await asyncio.wait([reader.task])


async def test_a_reader_that_is_cancelled_leaves_nothing_behind(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        readers = [Reader(hub, agent) for _ in range(5)]
        for _ in readers:
            tail = await next_tail(zurich)
            await zurich.answer(tail, chunk(tail, 0, b"x"))
        await until(lambda: all(reader.pieces for reader in readers))
        assert len(hub._watch._tails) == 5
        for reader in readers:
            reader.task.cancel()
        await asyncio.wait([reader.task for reader in readers])
        assert not hub._watch._tails
        assert not hub._fanout._watchers


async def test_a_reader_that_is_slow_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hub.control.watch.MAX_PIECES_WAITING", 3)
    async with wheel(tmp_path) as (hub, zurich):
        agent, command = await running(hub, zurich)
        await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
        reader = Reader(hub, agent)
        whole = bytes(range(40))
        while not reader.task.done():
            try:
                async with asyncio.timeout(1):
                    tail = await next_tail(zurich)
            except TimeoutError:
                break
            pieces = [chunk(tail, n, whole[n : n + 1]) for n in range(tail.offset, 40)]
            await zurich.answer(tail, *pieces, attempt_end(tail, 40), end(tail))
        await reader.ends()
        assert reader.text == whole


async def test_a_spoke_that_says_hello_again_is_asked_again_from_where_the_reader_is(
    tmp_path: Path,
):
    async with wheel(tmp_path) as (hub, zurich):
        agent, _ = await running(hub, zurich)
        reader = Reader(hub, agent)
        tail = await next_tail(zurich)
        await zurich.answer(tail, chunk(tail, 0, b"abc"))
        await until(lambda: reader.text == b"abc")
        await zurich.hello()
        again = await next_tail(zurich)
        assert (again.attempt, again.offset) == (1, 3)
        reader.task.cancel()
        await asyncio.wait([reader.task])
