"""spawn_accept_rate and _p99: durable 202s per second through HTTP, over 64 connections.

The agents are held, so acceptance alone is measured: parsing, admission, one transaction shared with whoever else
spawns at that moment, an fsync, the answer. The whole way to `succeeded` is `agents_complete_rate`. The limit is a
bare litestar that parses the same body and answers 202 without storing anything.
"""

from collections.abc import Sequence
from typing import Final

from hub.dev.desk import UnexpectedError
from hub.dev.figures.bench_stack import WARM_UP, BenchStack
from hub.dev.figures.figure import Figure, figure, percentile
from hub.dev.figures.load import Run

BODY: Final = b'{"command":["/bin/true"],"labels":{"of":"bench"},"hold":true}'


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the two figures, of `n` spawns."""
    bare = await bench.bare_load(BODY, count=n)
    await bench.load(BODY, count=WARM_UP)
    run = await bench.load(BODY, count=n)
    for each in (bare, run):
        if each.statuses != {202: n}:
            raise UnexpectedError(f"answers by status: {each.statuses}")
    return [
        figure("spawn_accept_rate", n / run.seconds, "1/s", limit=n / bare.seconds, n=n),
        figure("spawn_accept_p99", _p99(run), "ms", limit=_p99(bare), n=n),
    ]


def _p99(run: Run) -> float:
    return percentile(run.latencies_ms, 0.99)
