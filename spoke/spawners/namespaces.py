"""What /proc tells about a process in its own namespaces (Linux only).

`/proc/<pid>/status` is readable by everybody. The links in `ns/` and the files in `fd/` may be refused for a process
that bubblewrap has not yet given its program, so callers take None for "cannot be told", never for "is another".
"""

import os
from pathlib import Path


def pid_namespace(pid: int) -> int | None:
    """Return the inode of the pid namespace `pid` lives in; None if it is gone or that cannot be told."""
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return None


def is_first(pid: int) -> bool:
    """Tell whether `pid` is process 1 of a pid namespace below ours."""
    numbers = _field(pid, "NSpid:").split()
    return len(numbers) > 1 and numbers[-1] == "1"


def has_capabilities(pid: int) -> bool:
    """Tell whether `pid` has any capability in its user namespace; False if it is gone."""
    return _field(pid, "CapEff:").strip("0\t ") != ""


def holders(path: Path, name: str) -> list[int]:
    """Return which processes called `name` have `path` open, as far as we may see.

    Costs milliseconds, so only for what a crash left behind.
    """
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - ten times as fast
    return [pid for pid in pids if _is_called(pid, name) and _has_open(pid, wanted)]


def _is_called(pid: int, name: str) -> bool:
    return _field(pid, "Name:").strip() == name


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as files:
            return any(os.path.samestat(wanted, file.stat()) for file in files)
    except OSError:
        return False


def _field(pid: int, name: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return next((line[len(name) :] for line in text.splitlines() if line.startswith(name)), "")
