"""Streams: SSE (WHATWG HTML, section 9.2) and text that goes on, ended by whoever comes first.

A stream ends when its source does, when the reader goes away, or when the hub stops; in each case the source is closed,
so its `finally` runs before the request is over. Between events a comment goes out every ten seconds, so that proxies
keep the connection and a reader that vanished is found.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import msgspec
from litestar.types import Receive, Scope, Send

HEARTBEAT_S: Final = 10.0
_HEARTBEAT: Final = b": \n\n"

_encode = msgspec.json.Encoder().encode


def event(kind: str, data: Any, event_id: str | None = None) -> bytes:
    """Return one SSE event; JSON has no line breaks, so `data` is one line."""
    head = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, kind.encode(), _encode(data))


class Stream:
    """An answer in pieces, as an ASGI application; used once."""

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        stopping: asyncio.Event,
        heartbeat: bool,
    ) -> None:
        self._source = source
        self._media_type = media_type
        self._stopping = stopping
        self._heartbeat = heartbeat

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self._media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._source):
            ends = [
                asyncio.create_task(self._pump(send)),
                asyncio.create_task(_gone(receive)),
                asyncio.create_task(_set(self._stopping)),
            ]
            beat = [asyncio.create_task(_beat(send))] if self._heartbeat else []
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*ends, *beat):
                    task.cancel()
                await asyncio.gather(*ends, *beat, return_exceptions=True)
        if not ends[0].cancelled():
            # A source that failed breaks the answer off: a clean end would say that this was all.
            ends[0].result()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        async for piece in self._source:
            await _write(send, piece)


async def _write(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _beat(send: Send) -> None:
    while True:
        await _write(send, _HEARTBEAT)
        await asyncio.sleep(HEARTBEAT_S)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _set(event: asyncio.Event) -> None:
    await event.wait()
