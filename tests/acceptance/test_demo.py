"""`./dev demo` as a person runs it, and that nothing is left whichever way it ends."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hub.dev.binaries import why_no_bubblewrap
from hub.dev.settings import ROOT
from hub.dev.watcher import MARK, started
from tests.helpers.stack import alive, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/environ").exists(), reason="needs /proc to see what is left"
    ),
]


@asynccontextmanager
async def demo(folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Yield a running demo, whose temporary files are below `folder`."""
    folder.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "hub.dev", "demo", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def in_bubblewrap() -> bool:
    return not why_no_bubblewrap()


@pytest.fixture
def folder(tmp_path_factory):
    # Sockets live below it, and their paths are short.
    return tmp_path_factory.mktemp("d")


def below(folder: Path) -> dict[int, str]:
    """Return the processes of a stack below the folder, pid → when it started.

    Daemons and servers bear it in their environment or arguments, and who is in a sandbox has a mount from there.
    """
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        text = b"".join(look(entry / name) for name in ("environ", "cmdline", "mountinfo"))
        if str(folder).encode() in text and int(entry.name) != os.getpid():
            found[int(entry.name)] = started(int(entry.name))
    return {pid: since for pid, since in found.items() if since}


def in_sandboxes(pids: dict[int, str]) -> list[int]:
    """Return those whose sources are mounted: the agents and their own processes."""
    return [pid for pid in pids if b" /src " in look(Path(f"/proc/{pid}/mountinfo"))]


def look(file: Path) -> bytes:
    """Return what stands there, nothing if the process is gone."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


async def read_until(process: asyncio.subprocess.Process, pattern: str) -> str:
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(60):
        while not re.search(pattern, seen):
            line = await process.stdout.readline()
            assert line, f"it ended early:\n{seen}"
            seen += line.decode()
    return seen


async def nothing_is_left(folder: Path, pids: dict[int, str]) -> None:
    async def gone():
        return not alive(pids) and not below(folder) and not list(folder.glob("felloe-*"))

    await eventually(gone, seconds=30, what=f"{MARK}: nothing left of {pids}")


async def test_the_demo_does_every_step_and_leaves_nothing(folder):
    async with demo(folder) as process:
        out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text
    assert "✗" not in text
    assert re.search(r"confirmed gone after \d", text)
    assert re.search(r"unknown_key 1, bad_signature 2|bad_signature 2", text)
    assert "adopted by the next daemon" in text
    await nothing_is_left(folder, {})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_demo_that_is_ended_in_the_middle_of_a_kill_leaves_nothing(folder, number):
    async with demo(folder) as process:
        await read_until(process, "spawned stubborn")
        await asyncio.sleep(0.5)
        pids = below(folder)
        assert len(pids) > 8, "nats, two valkeys, hub, two spokes, and an agent's processes"
        assert not in_bubblewrap() or in_sandboxes(pids)
        process.send_signal(number)
        await process.communicate()
    assert process.returncode in {-number, 128 + number}
    await nothing_is_left(folder, pids)


async def test_keep_stays_up_and_says_how_to_use_it(folder):
    async with demo(folder, "--keep") as process:
        text = await read_until(process, r"felloe spokes")
        url = re.search(r"FELLOE_URL=(\S+) FELLOE_TOKEN_FILE=(\S+)", text)
        assert url is not None
        assert Path(url[2]).is_file()
        listed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "hub.cli.felloe", "ps", "--all", "--json"),
            stdout=asyncio.subprocess.PIPE,
            env={
                "PYTHONPATH": str(ROOT),
                "FELLOE_URL": url[1],
                "FELLOE_TOKEN_FILE": url[2],
                "PATH": os.environ["PATH"],
            },
        )
        out, _ = await listed.communicate()
        assert listed.returncode == 0
        assert b"stubborn" in out
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
    await nothing_is_left(folder, {})
