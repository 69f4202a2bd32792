"""The embedded stack for tests, the CLI as a user types it, and how a test waits."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from hub.dev.plan import Options
from hub.dev.settings import ROOT
from hub.dev.stack import Stack
from hub.dev.watcher import started

T = TypeVar("T")

# Few slots, so that a queue is soon full; fast heartbeats, so that tests don't wait for facts.
OPTIONS = Options(slots=8, simulated=True, tap=True, heartbeat_s=0.5, suspect_s=3.0)


def quiet(_line: str) -> None:
    """Take a line of progress and say nothing."""


def new_stack(folder: Path, options: Options = OPTIONS) -> Stack:
    """Return a stack that is not started: `async with`, or prepare, start and stop it."""
    return Stack(folder, options, quiet)


def http(stack: Stack) -> httpx.AsyncClient:
    """Return a plain HTTP client, to see what is really answered."""
    headers = {"Authorization": f"Bearer {stack.plan.token}"}
    return httpx.AsyncClient(base_url=stack.plan.url, headers=headers, timeout=20, trust_env=False)


async def eventually(
    look: Callable[[], Awaitable[T]], *, seconds: float = 15.0, what: str = ""
) -> T:
    """Return the first true thing that `look` returns; what it raises meanwhile counts as no."""
    last: object = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if last := await look():
                        return last
                except Exception as error:  # noqa: BLE001 - it may not be there yet
                    last = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{what or look} not within {seconds} s; last: {last!r}") from None


async def spawn(api: httpx.AsyncClient, **request: Any) -> str:
    """Spawn with these fields, and return the agent's id."""
    answer = await api.post("/v1/agents", json=request)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def until(
    api: httpx.AsyncClient, agent: str, *states: str, seconds: float = 20.0
) -> dict[str, Any]:
    """Return the agent once it is in one of the states."""

    async def look() -> dict[str, Any] | None:
        seen = (await api.get(f"/v1/agents/{agent}")).json()
        return seen if seen["state"] in states else None

    return await eventually(look, seconds=seconds, what=f"{agent} {' or '.join(states)}")


async def output(api: httpx.AsyncClient, agent: str) -> list[str]:
    """Return the lines of an agent's output."""
    answer = await api.get(f"/v1/agents/{agent}/logs", headers={"Accept": "text/plain"})
    assert answer.status_code == 200, answer.text
    return answer.text.splitlines()


class Done(msgspec.Struct, frozen=True):
    """How a command ended."""

    status: int
    out: str
    err: str


async def felloe(stack: Stack, *arguments: str, seconds: float = 30.0) -> Done:
    """Run `felloe` as a user does, and return how it ended."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "FELLOE_URL": stack.plan.url,
        "FELLOE_TOKEN_FILE": str(stack.plan.token_file),
        "COLUMNS": "200",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "hub.cli.felloe", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return Done(process.returncode or 0, out.decode(), err.decode())


def alive(pids: dict[int, str]) -> set[int]:
    """Return which of these processes (pid → when it started) still run."""
    return {pid for pid, since in pids.items() if started(pid) == since}
