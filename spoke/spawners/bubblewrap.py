"""Sandboxes of namespaces, made by bubblewrap, which is its own shim: no helper of ours lives beside the agent.

    daemon ── posix_spawn ──> outer bwrap ── clone ──> child, process 1 of the namespaces ── fork ──> agent
                              writes `status`          sets up, drops its capabilities,
                              and waits                then reads the FIFO `hold`

What is built on, all of it seen with bubblewrap 0.11:
- The outer one writes the child's pid as soon as it has cloned; the mounts come later. The child drops its last
  capability when its set-up is complete, directly before it waits at the FIFO. So *held* is: capabilities gone.
  A mount that cannot be made ends the child before that, with its reason on stderr.
- The outer one records the exit code and ends when the *agent* ends; what the agent left behind in the namespace goes
  on. We end it: an attempt is over when its agent is.
- When process 1 of a pid namespace has ended, the kernel has ended all others in it. So *gone* is: outer and child are
  no more. The outer one alone proves nothing: killed, it leaves the rest alive.
- There is an exit code only if the program was executed. Else stderr begins with bubblewrap's own words, as the agent
  has said nothing yet.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Final

from shared.clock import Clock, now_ms
from shared.messages import Exit, ExitKind, SandboxKind
from spoke.spawners import cgroups
from spoke.spawners.arguments import options
from spoke.spawners.attempt_folder import AttemptFolder
from spoke.spawners.base import Handle, Sandbox, SetupError
from spoke.spawners.endings import ending, not_started, output_cap
from spoke.spawners.host import Host
from spoke.spawners.launching import launch, prepare_to_launch
from spoke.spawners.namespaces import has_capabilities, holders
from spoke.spawners.processes import (
    Seen,
    boot_id,
    children,
    is_alive,
    reap,
    see,
    send,
    tree,
)
from spoke.spawners.rlimits import bound
from spoke.spawners.status import child_of, has_child, read_status
from spoke.spawners.watching import OutputCaps, gone, see_through, until

# A set-up takes 3 ms idle; on a host where it takes this long, something is wrong.
_SETUP_S: Final = 20.0
_LOOK_S: Final = 0.001  # between two looks at a set-up, which takes about 4 ms
# How long after a crash of the daemon the outer one may take to write its first line.
_FIRST_WORD_S: Final = 2.0
# After its child was killed the outer one records that and ends, within a millisecond.
_LAST_WORD_S: Final = 1.0

_BWRAP_SAYS: Final = "bwrap: "
_EXEC_FAILED: Final = "bwrap: execvp"


class Bubblewrap:
    """See `spoke.spawners.base`. One for all attempts; keeps nothing about them in memory."""

    kind = SandboxKind.BUBBLEWRAP

    def __init__(self, host: Host, *, clock: Clock = now_ms, patience_s: float = _SETUP_S) -> None:
        """`patience_s` is how long a set-up, or the end of one, may take."""
        self._host = host
        self._cgroups = host.cgroups
        self._clock = clock
        self._patience_s = patience_s
        self._caps = OutputCaps()
        prepare_to_launch()

    def lacks(self) -> tuple[str, ...]:
        trouble = (self._host.trouble,) if self._host.trouble else ()
        seccomp = ("no seccomp filter yet: agents may use every system call",)
        return (*trouble, *self._host.lacks_cgroups(), *seccomp, *self._host.lacks_user())

    async def prepare(self, sandbox: Sandbox) -> Handle:
        folder = AttemptFolder(sandbox.folder)
        if folder.status.exists():
            await self._end_held(sandbox, folder)
            _refuse_second(folder)
        pid = 0
        try:
            paths = self._cgroups.make(sandbox.name)
            pid = self._cgroups.inside(sandbox.name, lambda: self._launch(sandbox, folder))
            return await self._hold(sandbox, folder, pid, paths)
        except BaseException as error:
            await see_through(self._abandon(sandbox, folder, pid))
            if isinstance(error, OSError):  # TimeoutError is one too
                reason = str(error) or f"not ready after {self._patience_s:.0f} s"
                raise SetupError(f"the sandbox could not be made: {reason}") from error
            raise

    def _launch(self, sandbox: Sandbox, folder: AttemptFolder) -> int:
        folder.make(sandbox.spec)
        wanted = options(sandbox, folder.input)
        status = os.open(
            folder.status, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        hold = os.open(folder.hold, os.O_RDWR | os.O_CLOEXEC)
        passed = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        try:
            wanted += ["--json-status-fd", str(status), "--block-fd", str(hold)]
            os.write(passed, b"".join(os.fsencode(option) + b"\0" for option in wanted))
            os.lseek(passed, 0, os.SEEK_SET)
            actions = folder.output_actions(sandbox.spec)
            actions += [(os.POSIX_SPAWN_DUP2, file, file) for file in (status, hold, passed)]
            arguments = [self._host.bwrap, "--args", str(passed), "--", *sandbox.spec.command]
            return launch(self._host.bwrap, arguments, {}, actions)
        finally:
            for file in (status, hold, passed):
                os.close(file)

    async def _hold(
        self, sandbox: Sandbox, folder: AttemptFolder, pid: int, paths: tuple[str, ...]
    ) -> Handle:
        """Wait for the namespaces, bound them, and wait until the agent is held."""
        async with asyncio.timeout(self._patience_s):
            self._cgroups.bound(sandbox.name, sandbox.spec.limits)
            outer = see(pid)
            await until(lambda: _is_ready(folder) or not _runs(pid), most_s=_LOOK_S)
            status = read_status(folder.status)
            child = see(status.child_pid) if status.child_pid else None
            if outer is None or child is None:
                raise _setup_error(sandbox, folder, paths)
            await self._cgroups.join(paths, (pid, child.pid))
            bound((pid, child.pid), sandbox.spec.limits)
        if not is_alive(child.pid, child.started):
            raise _setup_error(sandbox, folder, paths)
        return Handle(
            kind=self.kind,
            boot_id=boot_id(),
            pid=pid,
            pid_started=outer.started,
            child_pid=child.pid,
            child_started=child.started,
            namespace=status.pid_namespace,
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
        if handle.boot_id != boot_id():
            return
        if sandbox.spec.handles_sigterm:
            send(handle.child_pid, handle.child_started, signal.SIGTERM)
        elif is_alive(handle.child_pid, handle.child_started):
            # Process 1 forked the agent before it adopted anybody, so the agent is the oldest of its children.
            for pid in children(handle.child_pid)[:1]:
                agent = see(pid)
                if agent is not None and agent.parent == handle.child_pid:
                    send(agent.pid, agent.started, signal.SIGTERM)

    async def destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        if handle.boot_id != boot_id():
            return
        _kill(handle)
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await gone(handle.pid, handle.pid_started)
        except TimeoutError:
            send(handle.pid, handle.pid_started, signal.SIGKILL)
        await _all_gone(handle)

    async def recover(self, sandbox: Sandbox, handle: Handle | None) -> Handle | Exit | None:
        folder = AttemptFolder(sandbox.folder)
        if handle is None:
            await self._end_held(sandbox, folder)
            return None
        if handle.boot_id == boot_id() and is_alive(handle.pid, handle.pid_started):
            return handle
        await _all_gone(handle)  # the outer one has ended: so must the rest
        return _ending(sandbox, folder, handle)

    async def processes(self, sandbox: Sandbox, handle: Handle) -> int:
        """Count everyone in the namespace, bubblewrap's process 1 included."""
        if handle.boot_id != boot_id() or not is_alive(handle.child_pid, handle.child_started):
            return 0
        return len(tree(handle.child_pid))

    async def clean_up(self, sandbox: Sandbox, handle: Handle | None) -> None:
        if handle is not None:
            reap(handle.pid)
        AttemptFolder(sandbox.folder).clear()
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
                    cgroups.hurry(paths)
                    for seen in await _held(folder):
                        send(seen.pid, seen.started, signal.SIGKILL)
                        await gone(seen.pid, seen.started)
                    cgroups.kill(paths)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise SetupError(f"somebody holds {folder.hold} open and cannot be ended") from None

    async def _abandon(self, sandbox: Sandbox, folder: AttemptFolder, pid: int) -> None:
        """Undo a set-up that failed or was cancelled."""
        outer = see(pid) if pid else None
        await self._end_held(sandbox, folder)
        cgroups.hurry(self._cgroups.paths(sandbox.name))
        if outer is not None:
            send(pid, outer.started, signal.SIGKILL)
            await gone(pid, outer.started)
        folder.clear()
        folder.status.unlink(missing_ok=True)
        await cgroups.remove(self._cgroups.paths(sandbox.name))


async def _held(folder: AttemptFolder) -> list[Seen]:
    """Return the child that waits at the FIFO, and its outer one, which leads its session until the release."""
    with contextlib.suppress(TimeoutError):  # of one that was ended before it could speak
        async with asyncio.timeout(_FIRST_WORD_S):
            await until(lambda: has_child(folder.status) or not folder.is_held())
    child = child_of(read_status(folder.status))
    if child is None:
        return [seen for pid in holders(folder.hold, "bwrap") if (seen := see(pid))]
    outer = see(child.session)
    return [seen for seen in (child, outer) if seen]


def _is_ready(folder: AttemptFolder) -> bool:
    """Tell whether the set-up is complete: the child has given up its last capability."""
    child = read_status(folder.status).child_pid
    return child > 0 and not has_capabilities(child)


def _runs(pid: int) -> bool:
    seen = see(pid)
    return seen is not None and not seen.is_over


def _refuse_second(folder: AttemptFolder) -> None:
    """At most one sandbox per attempt, ever: raises SetupError if it runs, or ran."""
    status = read_status(folder.status)
    if status.exit_code is not None or child_of(status) is not None:
        raise SetupError(f"this attempt was started already: {folder.path}")


def _setup_error(sandbox: Sandbox, folder: AttemptFolder, paths: Sequence[str]) -> SetupError:
    reason = folder.first_words() or "no reason given"
    if cgroups.out_of_memory(paths):
        reason = f"it does not fit into {sandbox.spec.limits.memory_bytes} bytes of memory"
    return SetupError(f"the sandbox could not be made: {reason}")


def _kill(handle: Handle) -> None:
    """End the namespace: the kernel ends all of it with its process 1."""
    cgroups.hurry(handle.cgroups)
    send(handle.child_pid, handle.child_started, signal.SIGKILL)


async def _all_gone(handle: Handle) -> None:
    """Return when nothing of it is alive. Whatever outlives the outer one is ended."""
    if handle.boot_id != boot_id():
        return
    await gone(handle.pid, handle.pid_started)
    if is_alive(handle.child_pid, handle.child_started):
        _kill(handle)
    await gone(handle.child_pid, handle.child_started)
    await cgroups.empty(handle.cgroups)


def _ending(sandbox: Sandbox, folder: AttemptFolder, handle: Handle) -> Exit:
    code = read_status(folder.status).exit_code
    out_of_memory = cgroups.out_of_memory(handle.cgroups)
    words = folder.first_words() if code is None and not out_of_memory else ""
    if words.startswith(_BWRAP_SAYS):
        kind = ExitKind.START_FAILED if words.startswith(_EXEC_FAILED) else ExitKind.SETUP_FAILED
        return not_started(folder, kind, words.removeprefix(_BWRAP_SAYS))
    return ending(sandbox, folder, code, out_of_memory=out_of_memory)
