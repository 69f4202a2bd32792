"""What bubblewrap writes to `--json-status-fd`: one line when it has made the namespaces, one with the exit code.

    { "child-pid": 7630, …, "pid-namespace": 4026532181, … }
    { "exit-code": 7 }

The second line comes only if the agent's program was really executed. A line counts once its newline is there.
"""

from pathlib import Path

import msgspec


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


def _merge(old: Status, new: Status) -> Status:
    code = old.exit_code if new.exit_code is None else new.exit_code
    return Status(
        child_pid=new.child_pid or old.child_pid,
        pid_namespace=new.pid_namespace or old.pid_namespace,
        exit_code=code,
    )
