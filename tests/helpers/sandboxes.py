"""Sandboxes for tests: one rig per spawner, and a daemon that can be killed.

Run as a program this file is that daemon: it brings one attempt to a stage, prints the handle, and waits to be killed.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from shared.messages import AgentSpec, Limits, SandboxKind, Simulation
from spoke.spawners import host, processes
from spoke.spawners.base import Handle, MountPoint, Sandbox, Spawner
from spoke.spawners.bubblewrap import Bubblewrap
from spoke.spawners.cgroups import CONTROLLERS, MOUNT
from spoke.spawners.process import Process
from spoke.spawners.simulated import Simulated
from spoke.spawners.watching import until
from tests.helpers.builders import new_id, spec

ROOT: Final = Path(__file__).parents[2]
REAL: Final = (SandboxKind.BUBBLEWRAP, SandboxKind.PROCESS)
CGROUP: Final = f"felloe-test-{os.getpid()}"


def make_spawner(kind: SandboxKind, found: host.Host, patience_s: float = 20.0) -> Spawner:
    match kind:
        case SandboxKind.BUBBLEWRAP:
            return Bubblewrap(found, patience_s=patience_s)
        case SandboxKind.PROCESS:
            return Process(found, patience_s=patience_s)
        case SandboxKind.SIMULATED:
            return Simulated()


# --- what to run: a script, and what `simulated` pretends instead ------------------------------------


def shell(script: str, **changes: Any) -> AgentSpec:
    return spec(command=("sh", "-c", script), **changes)


def exits(code: int, **changes: Any) -> AgentSpec:
    return shell(f"exit {code}", simulation=Simulation(exit_code=code), **changes)


def says(text: str, **changes: Any) -> AgentSpec:
    return spec(command=("printf", "%s", text), simulation=Simulation(output=text), **changes)


def lasts(seconds: float, code: int = 0, **changes: Any) -> AgentSpec:
    pretends = Simulation(duration_ms=int(seconds * 1000), exit_code=code)
    return shell(f"sleep {seconds}; exit {code}", simulation=pretends, **changes)


def small(**changes: int) -> Limits:
    return msgspec.structs.replace(Limits(disk_bytes=1024**2), **changes)


# --- the rig -----------------------------------------------------------------------------------------


class Rig:
    """A spawner, and every attempt that a test made with it."""

    def __init__(self, kind: SandboxKind, folder: Path, found: host.Host) -> None:
        self.kind = kind
        self.host = found
        self.spawner = make_spawner(kind, found)
        self._folder = folder
        self._made: list[tuple[Sandbox, Handle | None]] = []

    def sandbox(self, what: AgentSpec, *mounts: MountPoint) -> Sandbox:
        agent = new_id()
        made = Sandbox(
            agent=agent,
            gen=1,
            attempt=1,
            fence=1,
            spec=msgspec.structs.replace(what, sandbox=self.kind),
            mounts=mounts,
            folder=self._folder / agent,
        )
        self._made.append((made, None))
        return made

    def knows(self, sandbox: Sandbox, handle: Handle) -> Handle:
        self._made.append((sandbox, handle))
        return handle

    async def hold(self, what: AgentSpec, *mounts: MountPoint) -> tuple[Sandbox, Handle]:
        sandbox = self.sandbox(what, *mounts)
        return sandbox, self.knows(sandbox, await self.spawner.prepare(sandbox))

    async def start(self, what: AgentSpec, *mounts: MountPoint) -> tuple[Sandbox, Handle]:
        sandbox, handle = await self.hold(what, *mounts)
        await self.spawner.release(sandbox, handle)
        return sandbox, handle

    async def output(self, what: AgentSpec, *mounts: MountPoint) -> str:
        """Run to the end and return what was written."""
        sandbox, handle = await self.start(what, *mounts)
        async with asyncio.timeout(20):
            await self.spawner.wait(sandbox, handle)
        return out(sandbox)

    def successor(self, patience_s: float = 20.0) -> Spawner:
        return make_spawner(self.kind, self.host, patience_s)

    async def end(self) -> None:
        for sandbox, handle in reversed(self._made):
            if handle is not None:
                await self.spawner.destroy(sandbox, handle)
            else:
                await self.spawner.recover(sandbox, None)
            await self.spawner.clean_up(sandbox, handle)


def out(sandbox: Sandbox, name: str = "out") -> str:
    file = sandbox.folder / name
    return file.read_text() if file.exists() else ""


async def says_so(sandbox: Sandbox, text: str) -> None:
    """Wait until the agent has written `text`."""
    async with asyncio.timeout(10):
        await until(lambda: text in out(sandbox))


def zombies() -> list[int]:
    """Our children that have ended and that nobody has reaped."""
    seen = [processes.see(pid) for pid in processes.children(os.getpid())]
    return [one.pid for one in seen if one is not None and one.is_over]


def cgroup_folders(name: str = CGROUP) -> list[Path]:
    return [path for c in CONTROLLERS for path in (MOUNT / c / name).glob("*/")]


def remove_cgroups(name: str = CGROUP) -> None:
    for path in [*(MOUNT / c / name for c in CONTROLLERS), MOUNT / name]:
        if path.is_dir():
            path.rmdir()


def alive_with(text: str) -> list[int]:
    """The processes whose command line holds `text`."""
    found: list[int] = []
    for seen in processes.every():
        try:
            line = Path(f"/proc/{seen.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if not seen.is_over and text.encode() in line:
            found.append(seen.pid)
    return found


# --- a daemon that can be killed ---------------------------------------------------------------------


class Orders(msgspec.Struct):
    sandbox: Sandbox
    stage: str  # launched, prepared, released
    cgroup: str


@contextmanager
def doomed_daemon(sandbox: Sandbox, stage: str) -> Iterator[Handle | None]:
    """A daemon in another process that has brought `sandbox` to `stage`; killed with SIGKILL at the exit."""
    command = [sys.executable, "-m", "tests.helpers.sandboxes"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"SECRET": "x"},
    ) as daemon:
        try:
            assert daemon.stdin is not None
            assert daemon.stdout is not None
            daemon.stdin.write(
                msgspec.json.encode(Orders(sandbox, stage, CGROUP), enc_hook=str) + b"\n"
            )
            daemon.stdin.flush()
            line = daemon.stdout.readline()
            yield msgspec.json.decode(line, type=Handle) if line else None
        finally:
            daemon.kill()


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _obey(orders: Orders) -> None:
    spawner = make_spawner(orders.sandbox.spec.sandbox, host.look(cgroups=orders.cgroup))
    if orders.stage == "launched":
        spawner._hold = _dies  # between the start of the sandbox and the first thing known of it
    handle = await spawner.prepare(orders.sandbox)
    if orders.stage == "released":
        await spawner.release(orders.sandbox, handle)
    sys.stdout.buffer.write(msgspec.json.encode(handle) + b"\n")
    sys.stdout.buffer.flush()
    await asyncio.sleep(60)


def _to_path(kind: type[Any], value: Any) -> Any:
    return kind(value)


if __name__ == "__main__":
    uvloop.run(
        _obey(msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders, dec_hook=_to_path))
    )
