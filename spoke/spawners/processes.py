"""Processes, known by pid *and* start time, since pids are used again.

Nothing here signals a pid that it has not just matched with its start time; on Linux through a pidfd, which keeps
pointing at that very process. A zombie counts as gone: it runs no instruction any more. (A zombie leader whose threads
still run is not gone; /proc counts its threads.)

Elsewhere (macOS) `ps` says the same in seconds; the driver that uses it says so.
"""

import calendar
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

IS_LINUX: Final = sys.platform == "linux"


class Seen(NamedTuple):
    """One process at one moment. `started`: clock ticks since boot on Linux (proc(5), field 22), elsewhere Unix s."""

    pid: int
    parent: int
    session: int  # elsewhere the process group: `ps` has no usable session
    started: int
    is_over: bool


@functools.cache
def boot_id() -> str:
    """Return what names this boot: no process outlives it."""
    if IS_LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return _output(["sysctl", "-n", "kern.boottime"]).strip()


def see(pid: int) -> Seen | None:
    """Return what the system knows of `pid`, or None if there is no such process."""
    if not IS_LINUX:
        return next(iter(_ps(["-p", str(pid)])), None)
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(file, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    # The name in parentheses may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    over = fields[0] in b"ZX" and int(fields[17]) <= 1
    return Seen(pid, int(fields[1]), int(fields[3]), int(fields[19]), over)


def is_alive(pid: int, started: int) -> bool:
    """Tell whether that very process still runs."""
    seen = see(pid) if pid else None
    return seen is not None and seen.started == started and not seen.is_over


def send(pid: int, started: int, number: int) -> bool:
    """Signal that very process; False, and nothing was signalled, if it is gone."""
    try:
        file = _pidfd(pid)
        if file is None:
            return is_alive(pid, started) and _kill(pid, number)
        try:
            return is_alive(pid, started) and _send_to(file, number)
        finally:
            os.close(file)
    except ProcessLookupError:
        return False


def reap(pid: int) -> None:
    """Take the exit status of `pid`, if it has ended and was our child: nobody needs it, but a zombie would stay."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def children(pid: int) -> list[int]:
    """Return the children of `pid`, the oldest first."""
    if not IS_LINUX:
        return [seen.pid for seen in every() if seen.parent == pid]
    found: list[int] = []
    try:
        for thread in os.scandir(f"/proc/{pid}/task"):
            found += map(int, Path(thread.path, "children").read_bytes().split())
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def tree(pid: int) -> list[int]:
    """Return `pid` and all who descend from it, as far as nobody in between has ended."""
    found = [pid]
    for parent in found:
        found += children(parent)
    return found


def session(leader: int) -> list[Seen]:
    """Return who lives in the session that `leader` began, whether or not it lives itself."""
    return [seen for seen in every() if seen.session == leader and not seen.is_over]


def every() -> list[Seen]:
    """Return all processes: costs milliseconds."""
    if not IS_LINUX:
        return _ps(["-A"])
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - ten times as fast
    return [seen for pid in pids if (seen := see(pid)) is not None]


def pidfd(pid: int, started: int) -> int | None:
    """Return a file that becomes readable when that very process ends; None where that cannot be had.

    Raises ProcessLookupError if it is gone.
    """
    file = _pidfd(pid)
    if file is not None and not is_alive(pid, started):
        os.close(file)
        raise ProcessLookupError(pid)
    return file


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):  # not Linux, an old kernel, or too many open files
        return None


def _send_to(file: int, number: int) -> bool:
    signal.pidfd_send_signal(file, number)
    return True


def _kill(pid: int, number: int) -> bool:
    os.kill(pid, number)
    return True


def _ps(which: Sequence[str]) -> list[Seen]:
    lines = _output(["ps", *which, "-o", "pid=,ppid=,pgid=,stat=,lstart="]).splitlines()
    return [_parse(line.split(None, 4)) for line in lines]


def _parse(fields: Sequence[str]) -> Seen:
    pid, parent, group, state, started = fields
    when = calendar.timegm(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y"))
    return Seen(int(pid), int(parent), int(group), when, "Z" in state)


def _output(command: Sequence[str]) -> str:
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    return subprocess.run(  # noqa: S603 - our own fixed commands
        command, env=environment, capture_output=True, text=True, check=False
    ).stdout
