"""The shim of a plain process: a few lines of POSIX shell that hold the agent, wait for it and note its end.

It writes two lines to the file `status`, `pid <its own>` when it holds and `exit <code>` when the agent has ended; a
line counts once its newline is there. It reads the FIFO as file 3 and writes the status as file 4; the agent gets
neither.
"""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

from shared.messages import Limits
from spoke.spawners.attempt_folder import AttemptFolder, FileActions
from spoke.spawners.base import Sandbox
from spoke.spawners.environment import environment
from spoke.spawners.launching import launch
from spoke.spawners.rlimits import OPEN_FILES, file_size

WORK: Final = "work"  # the folder, beside the spools, in which the agent begins

_SHELL: Final = "/bin/sh"
# $1 is where to work, $2 a file size in blocks of 512 bytes, $3 the open files.
# `exec` in a subshell, so that a name like `echo` is a program and not the shell's own.
_SCRIPT: Final = """
echo "pid $$" >&4
read -r _ <&3
exec 3<&- 5>&2 2>/dev/null
trap : TERM INT HUP QUIT
ulimit -c 0; ulimit -f "$2"; ulimit -n "$3"
cd "$1" || exit
shift 3
(exec "$@" 2>&5 5>&- 4>&-)
echo "exit $?" >&4
"""
_BLOCK: Final = 512


def launch_shim(sandbox: Sandbox, folder: AttemptFolder) -> int:
    """Start the shim, which will hold, and return its pid. Raises OSError, and SetupError for a wrong environment."""
    folder.make(sandbox.spec)
    work = folder.path / WORK
    work.mkdir(exist_ok=True, mode=0o700)
    variables = environment(sandbox, home=str(work), input_path=str(folder.input))
    status = _open_high(folder.status, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    hold = _open_high(folder.hold, os.O_RDWR)
    try:
        actions: FileActions = [
            *folder.output_actions(sandbox.spec),
            (os.POSIX_SPAWN_DUP2, hold, 3),
            (os.POSIX_SPAWN_DUP2, status, 4),
        ]
        own = [str(work), *_bounds(sandbox.spec.limits)]
        arguments = [_SHELL, "-c", _SCRIPT, "felloe", *own, *sandbox.spec.command]
        return launch(_SHELL, arguments, variables, actions)
    finally:
        os.close(status)
        os.close(hold)


def shim_pid(folder: AttemptFolder) -> int:
    """Return the pid that the shim gave itself, 0 before it holds."""
    return _said(folder, "pid") or 0


def exit_code(folder: AttemptFolder) -> int | None:
    """Return the agent's exit code as a shell tells it, None if it was not noted."""
    return _said(folder, "exit")


def is_there(sandbox: Sandbox, folder: AttemptFolder) -> bool:
    """Tell whether the command can be executed: 126 and 127 may also be the agent's own."""
    program = sandbox.spec.command[0]
    if "/" in program:
        program = str(folder.path / WORK / program)
    path = environment(sandbox, home="", input_path="")["PATH"]
    return shutil.which(program, path=path) is not None


def _bounds(limits: Limits) -> tuple[str, str]:
    return str(-(-file_size(limits) // _BLOCK)), str(OPEN_FILES)


def _said(folder: AttemptFolder, word: str) -> int | None:
    try:
        lines = folder.status.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{word} ")), None)


def _open_high(path: Path, flags: int) -> int:
    """Open a file under a number that no `dup2` of ours overwrites."""
    low = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(low)
