"""What every figure stands on: a stack of its own, a client of its hub, and the bare litestar."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from hub.client import Client
from hub.dev.children import Child, Say
from hub.dev.figures.load import Run, load, request
from hub.dev.plan import Options, free_port
from hub.dev.stack import Stack, python

# So that neither a cold cache nor the first connection is part of a figure.
WARM_UP: Final = 500


class BenchStack(msgspec.Struct, frozen=True, kw_only=True):
    """A stack, and a client of its hub."""

    stack: Stack
    client: Client

    async def load(self, body: bytes, *, count: int, connections: int = 64) -> Run:
        """Send the same spawn `count` times to the hub."""
        data = request(self.stack.plan.url, self.stack.plan.token, "/v1/agents", body)
        return await load(
            self.stack.plan.url, lambda _n: data, count=count, connections=connections
        )

    @asynccontextmanager
    async def bare(self) -> AsyncGenerator[tuple[str, Child], None]:
        """Yield the address of a bare litestar that takes the same spawns, and its process."""
        port = free_port()
        child = self.stack.add("bare", python("hub.dev.figures.bare", str(port)))
        child.start()
        try:
            await _listening(port)
            yield f"http://127.0.0.1:{port}", child
        finally:
            await child.stop(grace_s=2.0)

    async def bare_load(self, body: bytes, *, count: int, connections: int = 64) -> Run:
        """Send the same spawns to the bare litestar."""
        async with self.bare() as (url, _child):
            data = request(url, "", "/v1/agents", body)
            await load(url, lambda _n: data, count=WARM_UP, connections=connections)
            return await load(url, lambda _n: data, count=count, connections=connections)


@asynccontextmanager
async def bench_stack(options: Options, say: Say) -> AsyncGenerator[BenchStack, None]:
    """Yield a stack in a temporary folder."""
    async with Stack(None, options, say) as stack, stack.client() as client:
        yield BenchStack(stack=stack, client=client)


async def _listening(port: int) -> None:
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
