"""spawn_latency_p50, _p99: `POST` sent → first instruction of the agent in bubblewrap, on an idle stack.

The agent's first act is to say the time, so its output holds the moment; both sides read CLOCK_REALTIME of the same
machine. The limit is the same program in a bare bubblewrap.
"""

import asyncio
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from hub.dev import binaries
from hub.dev.desk import output, until
from hub.dev.figures.bench_stack import BenchStack
from hub.dev.figures.figure import Figure, figure, percentile
from hub.dev.figures.load import request
from hub.schemas import SpawnRequest
from shared.lifecycle import State

# Bash says the time without starting another program; `date` costs one more fork.
_SAY_TIME: Final = (
    ("/bin/bash", "-c", "echo $EPOCHREALTIME")
    if shutil.which("bash")
    else ("/bin/sh", "-c", "date +%s.%6N")
)
# What `protocol.md` gives every sandbox, without Felloe around it.
_BARE: Final = (
    *(
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--new-session",
    ),
    *("--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108 - inside
)
# An agent of this kind is over and reported within 50 ms.
_REST_S: Final = 0.1
_ROOT_FOLDERS: Final = ("bin", "sbin", "lib", "lib32", "lib64")


class _Spawned(msgspec.Struct, frozen=True):
    id: str


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the two figures, of `n` spawns one after the other."""
    bare = [await _bare_ms() for _ in range(n)]
    spawned = await _spawn_all(bench, n)
    return [
        figure(
            f"spawn_latency_{name}", percentile(spawned, q), "ms", limit=percentile(bare, q), n=n
        )
        for name, q in (("p50", 0.5), ("p99", 0.99))
    ]


async def _spawn_all(bench: BenchStack, n: int) -> list[float]:
    """Send one POST after the other, each to a stack at rest; only afterwards look at what became of them."""
    body = msgspec.json.encode(SpawnRequest(command=list(_SAY_TIME), max_retries=0))
    data = request(bench.stack.plan.url, bench.stack.plan.token, "/v1/agents", body)
    address = urlsplit(bench.stack.plan.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    sent: dict[str, float] = {}
    try:
        for _ in range(n):
            moment = _now_s()
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
            sent[msgspec.json.decode(answer, type=_Spawned).id] = moment
            await asyncio.sleep(_REST_S)
    finally:
        writer.close()
    return [await _latency_ms(bench, agent, moment) for agent, moment in sent.items()]


async def _latency_ms(bench: BenchStack, agent: str, sent: float) -> float:
    await until(bench.client, agent, State.SUCCEEDED)
    return (float((await output(bench.client, agent))[0]) - sent) * 1000


async def _bare_ms() -> float:
    program = binaries.bwrap()
    if program is None:
        return 0.0
    sent = _now_s()
    process = await asyncio.create_subprocess_exec(
        program, *_BARE, *_links(), *_SAY_TIME, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return (float(said) - sent) * 1000


def _links() -> list[str]:
    """Return the options that make /bin, /lib, … links into /usr, as they are on this host."""
    names = [name for name in _ROOT_FOLDERS if Path("/", name).is_symlink()]
    return [part for name in names for part in ("--symlink", f"usr/{name}", f"/{name}")]


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
