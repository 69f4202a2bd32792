"""A load generator: HTTP/1.1 with keep-alive, one request in flight per connection, on asyncio protocols.

It shares the machine with what it measures, so it does the least: requests are bytes made before, and of an answer
it reads the status and the length. A general client spends ten times as much as the hub it is to load.
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: seconds for all, milliseconds for each, and how many of each status."""

    seconds: float
    latencies_ms: list[float]
    statuses: dict[int, int]


def request(url: str, token: str, path: str, body: bytes) -> bytes:
    """Return the bytes of a POST."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """Sends a request, waits for its whole answer, sends the next."""

    def __init__(
        self, next_request: Callable[[], bytes | None], seen: Callable[[int, float], None]
    ) -> None:
        self._next = next_request
        self._seen = seen
        self._buffer = b""
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        if len(self._buffer) < head + 4 + (int(length[1]) if length else 0):
            return
        status, self._buffer = int(self._buffer[9:12]), b""
        self._seen(status, (time.perf_counter() - self._sent) * 1000)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or ConnectionError("closed before the answer"))

    def _send(self) -> None:
        data = self._next()
        if data is None:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(data)


async def load(url: str, make: Callable[[int], bytes], *, count: int, connections: int) -> Run:
    """Send `make(0)` … `make(count - 1)` over so many connections; raises ConnectionError."""
    numbers = iter(range(count))
    latencies: list[float] = []
    statuses: dict[int, int] = {}

    def next_request() -> bytes | None:
        number = next(numbers, None)
        return None if number is None else make(number)

    def seen(status: int, ms: float) -> None:
        statuses[status] = statuses.get(status, 0) + 1
        latencies.append(ms)

    address, loop = urlsplit(url), asyncio.get_running_loop()
    began = time.perf_counter()
    made = [
        await loop.create_connection(
            lambda: _Connection(next_request, seen), address.hostname or "", address.port or 80
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.ended for _, connection in made))
    return Run(seconds=time.perf_counter() - began, latencies_ms=latencies, statuses=statuses)
