"""idle_rss_hub, idle_rss_spoke: the memory of daemons that did a little work and now wait.

The limit of the hub is a bare litestar, that of a spoke a Python that has only loaded uvloop, nats-py, redis-py,
msgspec and cryptography. Linux only: read from /proc.
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hub.dev.desk import UnexpectedError, until
from hub.dev.figures.bench_stack import BenchStack
from hub.dev.figures.figure import Figure, figure
from hub.dev.stack import python
from hub.schemas import SpawnRequest
from shared.lifecycle import State

_REST_S: Final = 2.0
_LIBRARIES: Final = (
    "import time, uvloop, nats, redis.asyncio, msgspec.json, structlog\n"
    "from cryptography.hazmat.primitives.asymmetric import ed25519\n"
    "time.sleep(600)"
)


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the two figures, after `n` agents."""
    for _ in range(n):
        agent = (await bench.client.spawn(SpawnRequest(command=["/bin/true"], max_retries=0))).id
        await until(bench.client, agent, State.SUCCEEDED)
    libraries = bench.stack.add("libraries", [*python()[:-1], "-c", _LIBRARIES])
    libraries.start()
    async with bench.bare() as (_url, bare):
        await asyncio.sleep(_REST_S)
        limits = [_rss_mib(child.pid) for child in (bare, libraries)]
    children = bench.stack.children
    spokes = [_rss_mib(children[spoke].pid) for spoke in bench.stack.spokes]
    return [
        figure("idle_rss_hub", _rss_mib(children["hub"].pid), "MiB", limit=limits[0], n=1),
        figure("idle_rss_spoke", max(spokes), "MiB", limit=limits[1], n=len(spokes)),
    ]


def _rss_mib(pid: int | None) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise UnexpectedError(f"no VmRSS of process {pid}")
    return int(found[1]) / 1024
