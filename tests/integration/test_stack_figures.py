"""How the bench measures: exact percentiles, and a load generator that counts every answer."""

import asyncio
import sys

import pytest

from hub.dev.figures.figure import figure, percentile
from hub.dev.figures.load import load, request
from hub.dev.plan import free_port
from hub.dev.settings import ROOT


def test_a_percentile_is_a_sample_and_none_in_between():
    samples = [float(n) for n in range(100, 0, -1)]
    assert percentile(samples, 0.5) == 50
    assert percentile(samples, 0.99) == 99
    assert percentile(samples, 1.0) == 100
    assert percentile([7.0], 0.5) == 7


def test_a_figure_without_a_limit_has_no_ratio():
    assert figure("x", 3.0, "ms", limit=0.0, n=1).ratio == 0
    assert figure("x", 3.0, "ms", limit=2.0, n=1).ratio == 1.5


@pytest.fixture
async def bare():
    """Yield the address of the bare litestar."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hub.dev.figures.bare", str(port)), cwd=ROOT
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_every_request_is_sent_once_and_its_answer_counted(bare):
    good = request(bare, "token", "/v1/agents", b'{"command":["true"]}')
    bad = request(bare, "token", "/v1/agents", b'{"priority":99}')
    run = await load(bare, lambda n: bad if n % 10 == 0 else good, count=200, connections=8)
    assert run.statuses == {202: 180, 400: 20}
    assert len(run.latencies_ms) == 200
    assert all(0 < ms < run.seconds * 1000 for ms in run.latencies_ms)


async def test_a_server_that_closes_in_the_middle_is_an_error_and_no_hang():
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Le")
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        data = request(f"http://127.0.0.1:{port}", "", "/", b"{}")
        with pytest.raises(ConnectionError):
            await load(f"http://127.0.0.1:{port}", lambda _n: data, count=2, connections=1)
