"""agents_complete_rate: spawned → recorded as succeeded at the hub, with sandboxes that only pretend, for 0 s.

Everything but the sandbox is real: acceptance, placement, signed commands, two spokes with their durable queues and
journals, signed events, acknowledgements. The limit is what a bare litestar merely accepts.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from hub.dev.desk import UnexpectedError
from hub.dev.figures.bench_stack import WARM_UP, BenchStack
from hub.dev.figures.figure import Figure, figure

BODY: Final = b'{"sandbox":"simulated","simulation":{"duration_s":0},"max_retries":0}'
_LOOK_S: Final = 0.02


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the figure, of `n` agents."""
    bare = await bench.bare_load(BODY, count=n)
    await _complete(bench, WARM_UP)
    seconds = await _complete(bench, n)
    return [figure("agents_complete_rate", n / seconds, "1/s", limit=n / bare.seconds, n=n)]


async def _complete(bench: BenchStack, n: int) -> float:
    """Spawn so many, and return the seconds until all of them are recorded as succeeded."""
    before = (await bench.client.queues()).total.counts.completed
    began = time.perf_counter()
    run = await bench.load(BODY, count=n)
    if run.statuses != {202: n}:
        raise UnexpectedError(f"answers by status: {run.statuses}")
    while (counts := (await bench.client.queues()).total.counts).completed < before + n:
        if counts.failed:
            raise UnexpectedError(f"{counts.failed} agents failed")
        await asyncio.sleep(_LOOK_S)
    return time.perf_counter() - began
