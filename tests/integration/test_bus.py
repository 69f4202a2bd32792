"""The one door to NATS, against a real server that comes late, dies, comes back, and hangs up for good."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.bus import Bus
from shared.errors import ConfigError, UnavailableError
from tests.helpers.spoke_site import NatsServer


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    yield server
    server.kill()


@asynccontextmanager
async def connected(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats.url, name="test", user="", password="")
    try:
        yield bus
    finally:
        await bus.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.02)


async def echo(_subject: str, data: bytes) -> bytes:
    return b"heard " + data


async def test_a_request_is_answered_by_whoever_listens(nats: NatsServer):
    nats.start()
    async with connected(nats) as bus:
        await bus.listen("a.*", echo)
        assert await bus.request("a.b", b"x", timeout_s=5) == b"heard x"


async def test_a_request_that_nobody_hears_is_unavailable(nats: NatsServer):
    nats.start()
    async with connected(nats) as bus:
        with pytest.raises(UnavailableError):
            await bus.request("a.b", b"x", timeout_s=5)


async def test_connect_waits_for_a_server_that_comes_late_and_says_so_once(nats: NatsServer):
    with capture_logs() as lines:
        waiting = asyncio.create_task(Bus.connect(nats.url, name="t", user="", password=""))
        await asyncio.sleep(1)
        assert not waiting.done()
        nats.start()
        async with asyncio.timeout(10):
            bus = await waiting
    assert bus.is_connected
    assert len([line for line in lines if line["event"] == "nats_error"]) == 1
    await bus.close()


async def test_waiting_for_a_server_can_be_given_up(nats: NatsServer):
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(Bus.connect(nats.url, name="t", user="", password=""))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before


async def test_a_server_that_accepts_and_says_nothing_is_tried_again(nats: NatsServer):
    with socket.create_server(("127.0.0.1", nats.port)):
        waiting = asyncio.create_task(Bus.connect(nats.url, name="t", user="", password=""))
        await asyncio.sleep(0.3)
    nats.start()
    async with asyncio.timeout(15):
        bus = await waiting
    await bus.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:4222", "http://127.0.0.1:4222", "nats://"])
async def test_what_is_no_nats_url_is_an_error_of_the_settings(url: str):
    with pytest.raises(ConfigError, match="not a NATS URL"):
        await Bus.connect(url, name="t", user="", password="")


async def test_a_password_in_the_url_is_in_no_log_line(nats: NatsServer):
    with capture_logs() as lines:
        url = nats.url.replace("nats://", "nats://someone:hunter2@")
        waiting = asyncio.create_task(Bus.connect(url, name="t", user="", password=""))
        await asyncio.sleep(0.3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert lines
    assert "hunter2" not in str(lines)


async def test_after_the_server_died_and_came_back_the_same_subscriptions_answer(
    nats: NatsServer,
):
    nats.start()
    async with connected(nats) as bus:
        back: list[float] = []
        bus.on_connect(lambda: back.append(time.monotonic()))
        await bus.listen("a.b", echo)
        nats.kill()
        await until(lambda: not bus.is_connected)
        with pytest.raises(UnavailableError):
            await bus.request("a.b", b"lost?", timeout_s=0.3)
        nats.start()
        await until(lambda: bool(back))
        assert await bus.request("a.b", b"x", timeout_s=5) == b"heard x"


async def test_a_client_that_closed_for_good_is_followed_by_a_new_one(nats: NatsServer):
    nats.start()
    async with connected(nats) as bus:
        back: list[int] = []
        bus.on_connect(lambda: back.append(1))
        await bus.listen("a.b", echo)
        # What nats-py does when the server sends this line: it closes, and never reconnects.
        await bus._client._process_err("'User Authentication Expired'")
        await until(lambda: bool(back))
        assert await bus.request("a.b", b"x", timeout_s=5) == b"heard x"


async def test_more_than_the_buffer_takes_is_refused_while_the_server_is_away(nats: NatsServer):
    nats.start()
    async with connected(nats) as bus:
        nats.kill()
        await until(lambda: not bus.is_connected)
        for _ in range(5):
            await bus.publish("a.b", bytes(200_000))
        with pytest.raises(UnavailableError):
            await bus.publish("a.b", bytes(200_000))


async def test_closing_while_the_server_is_away_leaves_nothing_behind(nats: NatsServer):
    nats.start()
    before = asyncio.all_tasks()
    async with connected(nats) as bus:
        await bus.listen("a.b", echo)
        nats.kill()
        await until(lambda: not bus.is_connected)
        await bus.publish("a.b", b"never sent")
    await until(lambda: asyncio.all_tasks() == before)


async def test_a_handler_that_fails_ends_neither_its_subscription_nor_its_neighbours(
    nats: NatsServer,
):
    async def fail_on_bad(_subject: str, data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError("a bug")
        return data

    nats.start()
    async with connected(nats) as bus:
        for parallel in (False, True):
            await bus.listen(f"a.{parallel}", fail_on_bad, parallel=parallel)
            with capture_logs() as lines, pytest.raises(UnavailableError):
                await bus.request(f"a.{parallel}", b"bad", timeout_s=0.3)
            assert [line["event"] for line in lines] == ["handler_failed"]
            assert await bus.request(f"a.{parallel}", b"good", timeout_s=5) == b"good"


async def test_handlers_run_in_order_or_side_by_side_up_to_a_bound(nats: NatsServer):
    at_work = {"now": 0, "most": 0}
    go_on = asyncio.Event()

    async def slow(_subject: str, _data: bytes) -> None:
        at_work["now"] += 1
        at_work["most"] = max(at_work.values())
        await go_on.wait()
        at_work["now"] -= 1

    nats.start()
    async with connected(nats) as bus:
        await bus.listen("in.order", slow)
        await bus.listen("side.by.side", slow, parallel=True)
        for _ in range(400):
            await bus.publish("side.by.side", b"")
            await bus.publish("in.order", b"")
        await bus.flush()
        await until(lambda: at_work["most"] >= 257)
        await asyncio.sleep(0.2)
        assert at_work["most"] == 257
        go_on.set()
        await until(lambda: at_work["now"] == 0)


async def test_closing_ends_the_handlers_that_are_still_at_work(nats: NatsServer):
    ended: list[str] = []

    async def forever(_subject: str, _data: bytes) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    nats.start()
    before: set[asyncio.Task[Any]] = asyncio.all_tasks()
    async with connected(nats) as bus:
        await bus.listen("a", forever, parallel=True)
        await bus.publish("a", b"")
        await bus.flush()
        await asyncio.sleep(0.1)
    assert ended == ["cancelled"]
    await until(lambda: asyncio.all_tasks() == before)
