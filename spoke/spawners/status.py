"""What bubblewrap writes to `--json-status-fd`: one line when it has made the namespaces, one with the exit code.

    { "child-pid": 7630, …, "pid-namespace": 4026532181, … }
    { "exit-code": 7 }

The second line comes only if the agent's program was really executed. A line counts once its newline is there.
"""

from pathlib import Path

import msgspec

from spoke.spawners.namespaces import is_first, pid_namespace
from spoke.spawners.processes import Seen, see


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is known so far; 0 and None: not yet."""

    child_pid: int = 0
    pid_namespace: int = 0
    exit_code: int | None = None


_decode = msgspec.json.Decoder(Status).decode


def read_status(file: Path) -> Status:
    """Return what `file` says; all unknown if it is missing or not bubblewrap's."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Status()
    found = Status()
    try:
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            found = _merge(found, _decode(line))
    except msgspec.MsgspecError:
        return Status()
    return found


def has_child(file: Path) -> bool:
    """Tell whether the first line is there."""
    return read_status(file).child_pid > 0


def child_of(status: Status) -> Seen | None:
    """Return process 1 of the namespaces that `status` speaks of, if it is alive and really that one."""
    child = see(status.child_pid) if status.child_pid else None
    if child is None or child.is_over:
        return None
    namespace = pid_namespace(child.pid)
    if namespace is None:
        return child if is_first(child.pid) else None
    return child if namespace == status.pid_namespace else None


def _merge(old: Status, new: Status) -> Status:
    code = old.exit_code if new.exit_code is None else new.exit_code
    return Status(
        child_pid=new.child_pid or old.child_pid,
        pid_namespace=new.pid_namespace or old.pid_namespace,
        exit_code=code,
    )
