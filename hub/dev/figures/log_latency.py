"""log_latency_p99: a line written in the sandbox → the same line out of the hub's SSE.

The agent writes the time, again and again; the reader follows with SSE and compares with its own clock, which is the
same one. The limit is the same program read through a pipe.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterable, Sequence
from typing import Final

from hub.dev.desk import until
from hub.dev.figures.bench_stack import BenchStack
from hub.dev.figures.figure import Figure, figure, percentile
from hub.schemas import SpawnRequest
from shared.lifecycle import State

_PAUSE_S: Final = 0.02
_SETTLING_S: Final = 0.2
_TIME: Final = re.compile(r"(\d+\.\d{6})$", re.MULTILINE)


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the figure, of `n` lines."""
    program = [
        "/bin/bash",
        "-c",
        f"for i in $(seq {n}); do echo $EPOCHREALTIME; sleep {_PAUSE_S}; done",
    ]
    bare = await _latencies(_piped(program))
    agent = (await bench.client.spawn(SpawnRequest(command=program, max_retries=0))).id
    seen = await _latencies(_followed(bench, agent))
    await until(bench.client, agent, State.SUCCEEDED)
    return [
        figure(
            "log_latency_p99",
            percentile(seen, 0.99),
            "ms",
            limit=percentile(bare, 0.99),
            n=len(seen),
        )
    ]


async def _latencies(texts: AsyncIterable[str]) -> list[float]:
    """Return the age in ms of each time in the texts, at the moment it came."""
    ages: list[float] = []
    async for text in texts:
        now = time.clock_gettime(time.CLOCK_REALTIME)
        ages.extend((now - float(said)) * 1000 for said in _TIME.findall(text))
    return ages


async def _followed(bench: BenchStack, agent: str) -> AsyncIterable[str]:
    # A reader that comes late gets what is there already at once: only what is written from then on has an age.
    began = time.clock_gettime(time.CLOCK_REALTIME) + _SETTLING_S
    async for event in bench.client.logs(agent):
        times = [said for said in _TIME.findall(event.log.text) if float(said) > began]
        yield "\n".join(times)


async def _piped(program: list[str]) -> AsyncIterable[str]:
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    if process.stdout is not None:
        async for line in process.stdout:
            yield line.decode()
    await process.wait()
