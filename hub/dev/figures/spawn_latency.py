"""spawn_latency_p50, _p99: `POST` sent → first instruction of the agent in bubblewrap, on an idle stack.

The agent's first act is to say the time, so its output holds the moment; both sides read CLOCK_REALTIME of the same
machine. The limit is the same program in a bare bubblewrap.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hub.dev import binaries
from hub.dev.desk import output, until
from hub.dev.figures.bench_stack import BenchStack
from hub.dev.figures.figure import Figure, figure, percentile
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
_ROOT_FOLDERS: Final = ("bin", "sbin", "lib", "lib32", "lib64")


async def measure(bench: BenchStack, n: int) -> Sequence[Figure]:
    """Return the two figures, of `n` spawns one after the other."""
    bare = [await _bare_ms() for _ in range(n)]
    spawned = [await _spawn_ms(bench) for _ in range(n)]
    return [
        figure(
            f"spawn_latency_{name}", percentile(spawned, q), "ms", limit=percentile(bare, q), n=n
        )
        for name, q in (("p50", 0.5), ("p99", 0.99))
    ]


async def _spawn_ms(bench: BenchStack) -> float:
    sent = _now_s()
    agent = (await bench.client.spawn(SpawnRequest(command=list(_SAY_TIME), max_retries=0))).id
    await until(bench.client, agent, State.SUCCEEDED)
    said = float((await output(bench.client, agent))[0])
    # Let the stack come to rest: the figure is of an idle one.
    await asyncio.sleep(0.02)
    return (said - sent) * 1000


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
