"""Plain processes: no isolation at all. For development and for macOS, and loudly named so.

    daemon ── posix_spawn ──> /bin/sh, the shim ── fork ──> agent
                              says its pid in `status`, reads the FIFO `hold`, waits,
                              adds the agent's exit code to `status`

The shim exists so that hold, exit code and restart of the daemon work as they do with bubblewrap. Its own stderr goes
nowhere (shells comment on the death of their children); SIGTERM does not end it. A tree is ended by its cgroup; without
one, only what stayed in the session can be found, and `lacks` says so.
"""

import asyncio
import contextlib
import shutil
import signal
from pathlib import Path
from typing import Final

from shared.clock import Clock, now_ms
from shared.messages import Exit, ExitKind, SandboxKind
from spoke.spawners import cgroups
from spoke.spawners.attempt_folder import AttemptFolder
from spoke.spawners.base import Handle, Sandbox, SetupError
from spoke.spawners.endings import ending, not_started, output_cap
from spoke.spawners.environment import environment
from spoke.spawners.host import Host
from spoke.spawners.launching import prepare_to_launch
from spoke.spawners.processes import (
    Seen,
    boot_id,
    children,
    is_alive,
    reap,
    see,
    send,
    session,
)
from spoke.spawners.shim import WORK, exit_code, is_there, launch_shim, shim_pid
from spoke.spawners.watching import OutputCaps, gone, see_through, until

_LAUNCH_S: Final = 20.0
_LAST_WORD_S: Final = 1.0
_NOT_EXECUTED: Final = (126, 127)  # POSIX, "Exit Status for Commands"


class Process:
    """See `spoke.spawners.base`. One for all attempts; keeps nothing about them in memory."""

    kind = SandboxKind.PROCESS

    def __init__(
        self, host: Host, *, clock: Clock = now_ms, patience_s: float = _LAUNCH_S
    ) -> None:
        """`patience_s` is how long a set-up, or the end of one, may take."""
        self._host = host
        self._cgroups = host.cgroups
        self._clock = clock
        self._patience_s = patience_s
        self._caps = OutputCaps()
        prepare_to_launch()

    def lacks(self) -> tuple[str, ...]:
        unsafe = (
            "UNSAFE, no isolation: agents are plain processes that see all the daemon's user sees"
        )
        trees = "no cgroup to find processes by: an agent that leaves its session escapes the kill"
        without = () if self._cgroups.controllers else (trees,)
        return (unsafe, *without, *self._host.lacks_cgroups(), *self._host.lacks_user())

    async def prepare(self, sandbox: Sandbox) -> Handle:
        folder = AttemptFolder(sandbox.folder)
        if folder.status.exists():
            await self._end_held(sandbox, folder)
            _refuse_second(folder)
        pid = 0
        try:
            paths = self._cgroups.make(sandbox.name)
            pid = self._cgroups.inside(sandbox.name, lambda: launch_shim(sandbox, folder))
            return await self._hold(sandbox, folder, pid, paths)
        except BaseException as error:
            await see_through(self._abandon(sandbox, folder, pid))
            if isinstance(error, OSError):  # TimeoutError is one too
                reason = str(error) or f"not ready after {self._patience_s:.0f} s"
                raise SetupError(f"the process could not be made: {reason}") from error
            raise

    async def _hold(
        self, sandbox: Sandbox, folder: AttemptFolder, pid: int, paths: tuple[str, ...]
    ) -> Handle:
        await self._cgroups.join(paths, (pid,))
        self._cgroups.bound(sandbox.name, sandbox.spec.limits)
        async with asyncio.timeout(self._patience_s):
            await until(lambda: shim_pid(folder) > 0 or not _runs(pid))
        shim = see(pid)
        if shim is None or shim.is_over:
            raise SetupError(f"the process could not be made: {folder.first_words()}")
        return Handle(
            kind=self.kind,
            boot_id=boot_id(),
            pid=pid,
            pid_started=shim.started,
            cgroups=paths,
            prepared_ms=self._clock(),
        )

    async def release(self, sandbox: Sandbox, handle: Handle) -> None:
        AttemptFolder(sandbox.folder).release()

    async def wait(self, sandbox: Sandbox, handle: Handle) -> Exit:
        folder = AttemptFolder(sandbox.folder)
        with self._caps.watch(folder.output_bytes, output_cap(sandbox), lambda: _kill(handle)):
            await _all_gone(handle)
        return _ending(sandbox, folder, handle)

    async def terminate(self, sandbox: Sandbox, handle: Handle) -> None:
        if handle.boot_id != boot_id() or not is_alive(handle.pid, handle.pid_started):
            return
        for pid in children(handle.pid):
            agent = see(pid)
            if agent is not None and agent.parent == handle.pid:
                send(agent.pid, agent.started, signal.SIGTERM)

    async def destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        if handle.boot_id != boot_id():
            return
        if not AttemptFolder(sandbox.folder).is_held():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):  # the shim records how its agent ended
                    await until(lambda: _is_over_without_its_agent(handle))
        send(handle.pid, handle.pid_started, signal.SIGKILL)
        await _all_gone(handle)

    async def recover(self, sandbox: Sandbox, handle: Handle | None) -> Handle | Exit | None:
        folder = AttemptFolder(sandbox.folder)
        if handle is None:
            await self._end_held(sandbox, folder)
            return None
        if handle.boot_id == boot_id():
            if is_alive(handle.pid, handle.pid_started):
                return handle
            # Its pid may be another's by now, even as the name of a session: only what says it is ours is.
            left = [
                seen for seen in _members(handle) if handle.cgroups or _is_of(sandbox, seen.pid)
            ]
            for seen in left:
                send(seen.pid, seen.started, signal.SIGKILL)
                await gone(seen.pid, seen.started)
            await cgroups.empty(handle.cgroups)
        return _ending(sandbox, folder, handle)

    async def processes(self, sandbox: Sandbox, handle: Handle) -> int:
        """Count everyone, the shim included."""
        if handle.boot_id != boot_id() or not is_alive(handle.pid, handle.pid_started):
            return 0
        return len(_members(handle))

    async def clean_up(self, sandbox: Sandbox, handle: Handle | None) -> None:
        if handle is not None:
            reap(handle.pid)
        folder = AttemptFolder(sandbox.folder)
        folder.clear()
        shutil.rmtree(folder.path / WORK, ignore_errors=True)
        paths = handle.cgroups if handle is not None else self._cgroups.paths(sandbox.name)
        await cgroups.remove(paths)

    async def _end_held(self, sandbox: Sandbox, folder: AttemptFolder) -> None:
        """End what was never released: its agent never ran. Nobody at the FIFO means that nothing is alive.

        Raises SetupError when somebody is there whom we cannot end: then there is no such proof.
        """
        paths = self._cgroups.paths(sandbox.name)
        try:
            async with asyncio.timeout(self._patience_s):
                while folder.is_held():
                    shim = see(shim_pid(folder))
                    if shim is not None and shim.session == shim.pid:
                        send(shim.pid, shim.started, signal.SIGKILL)
                        await gone(shim.pid, shim.started)
                    cgroups.kill(paths)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise SetupError(f"somebody holds {folder.hold} open and cannot be ended") from None

    async def _abandon(self, sandbox: Sandbox, folder: AttemptFolder, pid: int) -> None:
        """Undo a start that failed or was cancelled."""
        shim = see(pid) if pid else None
        if shim is not None:
            send(pid, shim.started, signal.SIGKILL)
            await gone(pid, shim.started)
        await self.clean_up(sandbox, None)
        folder.status.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    seen = see(pid)
    return seen is not None and not seen.is_over


def _refuse_second(folder: AttemptFolder) -> None:
    """At most one start per attempt, ever: raises SetupError if it runs, or ran."""
    if exit_code(folder) is not None or session(shim_pid(folder)):
        raise SetupError(f"this attempt was started already: {folder.path}")


def _members(handle: Handle) -> list[Seen]:
    """Return who belongs to it: its cgroup, else its session, whose number nobody gets while it has a member."""
    if handle.cgroups:
        seen = [see(pid) for pid in cgroups.members(handle.cgroups)]
        return [one for one in seen if one is not None and not one.is_over]
    return session(handle.pid)


def _kill(handle: Handle) -> None:
    """End everyone but the shim, which then records the end of its agent."""
    others = [seen for seen in _members(handle) if seen.pid != handle.pid]
    if others:
        cgroups.hurry(handle.cgroups)
    for seen in others:
        send(seen.pid, seen.started, signal.SIGKILL)


def _is_over_without_its_agent(handle: Handle) -> bool:
    _kill(handle)
    return not is_alive(handle.pid, handle.pid_started)


async def _all_gone(handle: Handle) -> None:
    """Return when nothing of it is alive. Whatever outlives the shim is ended."""
    if handle.boot_id != boot_id():
        return
    await gone(handle.pid, handle.pid_started)

    def is_empty() -> bool:
        _kill(handle)
        return not any(seen.pid != handle.pid for seen in _members(handle))

    await until(is_empty)


def _is_of(sandbox: Sandbox, pid: int) -> bool:
    """Tell whether a process was started with this attempt's environment (Linux; elsewhere: no)."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    own = environment(sandbox, home="", input_path="")
    names = ("FELLOE_IDEMPOTENCY_KEY", "FELLOE_ATTEMPT")
    return all(f"{name}={own[name]}".encode() in variables for name in names)


def _ending(sandbox: Sandbox, folder: AttemptFolder, handle: Handle) -> Exit:
    code = exit_code(folder)
    out_of_memory = cgroups.out_of_memory(handle.cgroups)
    if code in _NOT_EXECUTED and not is_there(sandbox, folder):
        return not_started(folder, ExitKind.START_FAILED, folder.first_words())
    return ending(sandbox, folder, code, out_of_memory=out_of_memory)
