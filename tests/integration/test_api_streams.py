"""Streams: replay and then news, taken up again where they broke, ended when the hub stops or the reader goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from hub.client import Client, LogEvent, SseEvent, SseReader
from hub.schemas import EventView, LogView, SpawnRequest
from shared import clock
from shared.messages import EventKind, LogChunk, LogKind, LogStream, SpokeHeader, Tail
from shared.subjects import logs
from shared.trust import seal_report
from tests.helpers.hub_site import SPOKE, TOKEN, HubSite, hub_site, spoke_peer
from tests.helpers.spoke_peer import SpokePeer

HELD = SpawnRequest(command=["/bin/true"], hold=True)
TEXT = "ünïcode 🙂 text\n" * 3


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[HubSite]:
    async with hub_site(tmp_path) as running:
        yield running


@pytest.fixture
async def hub(site: HubSite) -> AsyncIterator[Client]:
    async with site.client() as client:
        yield client


async def read_events(
    site: HubSite, path: str, count: int, *, last: str | None = None, **query: Any
) -> list[SseEvent]:
    """Return the first `count` events of a stream, by plain HTTP."""
    headers = {"Accept": "text/event-stream", **({} if last is None else {"Last-Event-ID": last})}
    found: list[SseEvent] = []
    reader = SseReader()
    async with (
        asyncio.timeout(5),
        site.http(**headers) as http,
        http.stream("GET", path, params=query) as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        async for data in answer.aiter_bytes():
            found += reader.feed(data)
            if len(found) >= count:
                break
    return found


class Output:
    """A spoke's side of a Tail: one running agent with one attempt, and its bytes."""

    def __init__(self, peer: SpokePeer, data: bytes) -> None:
        self.peer = peer
        self.data = data
        self.asked: list[Tail] = []

    async def start(self, hub: Client) -> str:
        """Have an agent running; returns its id."""
        agent = await hub.spawn(SpawnRequest(command=["a"]))
        spawned = await self.peer.next_command()
        await self.peer.ask(
            [
                self.peer.event(EventKind.QUEUED, spawned),
                self.peer.event(EventKind.RUNNING, spawned),
            ]
        )
        return agent.id

    async def answer(self, *cuts: int, then: LogKind | None = LogKind.END) -> None:
        """Send what the next Tail asks for, cut at these offsets."""
        tail = (await self.peer.next_command()).item
        assert isinstance(tail, Tail)
        self.asked.append(tail)
        edges = sorted({tail.offset, *(c for c in cuts if c > tail.offset), len(self.data)})
        for start, end in pairwise(edges):
            await self.send(tail, LogKind.DATA, offset=start, data=self.data[start:end])
        if then is not None:
            await self.send(tail, LogKind.ATTEMPT_END, offset=len(self.data))
            await self.send(tail, then, attempt=2)

    async def send(self, tail: Tail, kind: LogKind, **changes: Any) -> None:
        values: dict[str, Any] = {
            "cmd": tail.id, "agent": tail.agent, "gen": tail.gen, "attempt": 1, "kind": kind, "stream": LogStream.OUT,
            "offset": 0, "data": b"", "length": 0, "reason": "",
        }  # fmt: skip
        header = SpokeHeader(
            federation=self.peer.federation,
            iss=SPOKE,
            inc=self.peer.incarnation,
            iat=clock.now_ms(),
        )
        chunk = LogChunk(**{**values, **changes})
        await self.peer.bus.publish(
            logs(SPOKE, tail.reader), seal_report(header, [chunk], self.peer.signer)
        )

    async def end(self, hub: Client, agent: str) -> None:
        """Let the agent end at the hub too, so that nothing more can come."""
        await hub.kill(agent)
        order = await self.peer.next_command()
        await self.peer.ask([self.peer.event(EventKind.KILLED, order)])


# --- events ------------------------------------------------------------------------------------------


async def test_an_agents_stream_replays_its_life_and_goes_on_with_what_comes(
    site: HubSite, hub: Client
) -> None:
    agent = await hub.spawn(HELD)
    seen: list[EventView] = []

    async def watch() -> None:
        async with aclosing(hub.events(agent=agent.id)) as events:
            async for event in events:
                seen.append(event)
                if event.kind == "killed":
                    return

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(5):
        while not seen:
            await asyncio.sleep(0.01)
        await hub.spawn(HELD)
        await hub.release(agent.id)
        await hub.kill(agent.id)
        await watching

    assert [event.kind for event in seen] == ["created", "released", "kill_requested", "killed"]
    assert {event.agent for event in seen} == {agent.id}


async def test_a_stream_goes_on_after_the_last_event_that_arrived(
    site: HubSite, hub: Client
) -> None:
    agent = await hub.spawn(HELD)
    await hub.release(agent.id)
    await hub.kill(agent.id)
    path = f"/v1/agents/{agent.id}/events"

    whole = await read_events(site, path, 4)
    rest = await read_events(site, path, 2, last=whole[1].id)
    after = await read_events(site, path, 1, after=whole[2].id)

    assert [e.kind for e in whole] == ["created", "released", "kill_requested", "killed"]
    assert rest == whole[2:]
    assert after == whole[3:]


async def test_the_fleets_stream_begins_with_what_comes_and_json_with_the_oldest(
    site: HubSite, hub: Client
) -> None:
    before = await hub.spawn(HELD)
    reading = asyncio.create_task(read_events(site, "/v1/events", 1))
    await asyncio.sleep(0.2)
    after = await hub.spawn(HELD)
    (news,) = await reading
    page = await hub.event_page(limit=1)
    rest = await hub.event_page(after=page.next)

    assert msgspec.json.decode(news.data, type=EventView).agent == after.id
    assert [event.agent for event in page.events] == [before.id]
    assert [event.agent for event in rest.events] == [after.id]
    assert rest.next == rest.events[-1].id


async def test_a_client_takes_a_broken_stream_up_again(tmp_path: Path) -> None:
    async with hub_site(tmp_path) as site, site.client() as hub:
        agent = await hub.spawn(HELD)
        async with (
            asyncio.timeout(10),
            Cable(site.port) as cable,
            Client(cable.url, TOKEN) as far,
            aclosing(far.events(agent=agent.id)) as events,
        ):
            assert (await anext(events)).kind == "created"
            cable.cut()
            await hub.release(agent.id)
            assert (await anext(events)).kind == "released"
            await hub.kill(agent.id)
            cable.cut()
            assert (await anext(events)).kind == "kill_requested"
            assert (await anext(events)).kind == "killed"


async def test_streams_end_when_the_hub_stops(tmp_path: Path) -> None:
    async with hub_site(tmp_path) as site, site.client() as hub:
        agent = await hub.spawn(HELD)
        async with site.http(Accept="text/event-stream") as http:
            streams = [
                f"/v1/agents/{agent.id}/events",
                "/v1/events",
                f"/v1/agents/{agent.id}/logs",
            ]
            reading = [asyncio.create_task(http.get(path)) for path in streams]
            await asyncio.sleep(0.3)
            site.stop.set()
            async with asyncio.timeout(1.5):
                answers = await asyncio.gather(*reading)
    assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_a_reader_that_goes_leaves_nothing_behind(site: HubSite, hub: Client) -> None:
    agent = await hub.spawn(HELD)

    def watching() -> list[str]:
        return [
            t.get_coro().__qualname__
            for t in asyncio.all_tasks()
            if "Stream" in repr(t.get_coro())
        ]

    await read_events(site, f"/v1/agents/{agent.id}/events", 1)
    async with asyncio.timeout(5):
        while watching():
            await asyncio.sleep(0.02)


# --- logs --------------------------------------------------------------------------------------------


async def test_characters_are_whole_however_the_spoke_cuts_the_bytes(
    site: HubSite, hub: Client
) -> None:
    data = TEXT.encode()
    async with spoke_peer(site) as peer:
        output = Output(peer, data)
        agent = await output.start(hub)
        reading = asyncio.create_task(_all(hub, agent, follow=False))
        await output.answer(*range(len(data)))
        events = await reading

    assert "".join(event.log.text for event in events) == TEXT
    assert "\ufffd" not in "".join(event.log.text for event in events)
    assert [event.kind for event in events[-2:]] == ["attempt_end", "end"]


async def test_a_log_goes_on_at_the_byte_after_the_last_whole_character(
    site: HubSite, hub: Client
) -> None:
    data = TEXT.encode()
    inside = data.index("🙂".encode()) + 2
    async with spoke_peer(site) as peer:
        output = Output(peer, data)
        agent = await output.start(hub)
        path = f"/v1/agents/{agent}/logs"

        reading = asyncio.create_task(read_events(site, path, 1))
        tail = (await peer.next_command()).item
        assert isinstance(tail, Tail)
        await output.send(tail, LogKind.DATA, offset=0, data=data[:inside])
        (first,) = await reading

        answering = asyncio.create_task(output.answer())
        (second, *_) = await read_events(site, path, 1, last=first.id)
        await answering

    assert first.id == f"1.1.{inside - 2}"
    assert output.asked[0].offset == inside - 2
    texts = [msgspec.json.decode(event.data, type=LogView).text for event in (first, second)]
    assert "".join(texts) == TEXT


async def test_plain_text_is_the_bytes_as_they_are(site: HubSite, hub: Client) -> None:
    data = b"\xff\xfe raw \x00 bytes\n"
    async with spoke_peer(site) as peer, site.http() as http:
        output = Output(peer, data)
        agent = await output.start(hub)
        answering = asyncio.create_task(output.answer(3))
        answer = await http.get(f"/v1/agents/{agent}/logs")
        await answering

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.content == data


async def test_a_gap_is_said_and_not_skipped(site: HubSite, hub: Client) -> None:
    async with spoke_peer(site) as peer:
        output = Output(peer, b"")
        agent = await output.start(hub)
        reading = asyncio.create_task(_all(hub, agent, follow=False))
        tail = (await peer.next_command()).item
        assert isinstance(tail, Tail)
        await output.send(tail, LogKind.DATA, data=b"begin ")
        await output.send(tail, LogKind.GAP, offset=6, length=100, reason="the spool was cut")
        await output.send(tail, LogKind.DATA, offset=106, data=b"end")
        await output.send(tail, LogKind.END, offset=109)
        events = await reading

    assert [(e.kind, e.log.text or e.log.reason) for e in events[:3]] == [
        ("log", "begin "),
        ("gap", "the spool was cut"),
        ("log", "end"),
    ]


async def test_an_absent_site_is_said_in_every_form(tmp_path: Path) -> None:
    async with hub_site(tmp_path, suspect_s=0.5) as site, site.client() as hub:
        async with spoke_peer(site) as peer:
            agent = await Output(peer, b"").start(hub)
        await asyncio.sleep(0.7)
        async with site.http() as http:
            plain = await http.get(f"/v1/agents/{agent}/logs")
        (event,) = await _all(hub, agent, follow=False)
        shown = await hub.agent(agent)

    assert (plain.status_code, plain.json()["code"]) == (503, "spoke_away")
    assert event.kind == "absent"
    assert SPOKE in event.log.reason
    assert shown.stale


async def test_a_follower_sees_the_end_of_an_agent(site: HubSite, hub: Client) -> None:
    async with spoke_peer(site) as peer:
        output = Output(peer, b"all of it\n")
        agent = await output.start(hub)
        reading = asyncio.create_task(_all(hub, agent, follow=True))
        await output.answer(then=None)
        await output.end(hub, agent)
        await output.send(output.asked[0], LogKind.END, offset=10)
        async with asyncio.timeout(5):
            events = await reading

    assert "".join(event.log.text for event in events) == "all of it\n"
    assert (events[-1].kind, events[-1].log.reason) == ("end", "killed")


async def _all(hub: Client, agent: str, *, follow: bool) -> list[LogEvent]:
    async with aclosing(hub.logs(agent, follow=follow)) as events:
        return [event async for event in events]


class Cable:
    """A TCP cable between client and hub that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._plug, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()

    async def _plug(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends += [writer, back]
        await asyncio.gather(_pour(reader, back), _pour(there, writer), return_exceptions=True)


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
        await sink.drain()
