"""Starting a program beside the daemon: `posix_spawn`, never a fork of a large process.

The child gets its own session, no signal blocked or ignored (Python ignores SIGPIPE and SIGXFSZ, and ignored signals
are inherited), and no open file but those that it is given: Python's own are close-on-exec, and whatever the daemon
itself has inherited is made so once.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from spoke.spawners.attempt_folder import FileActions

_UNCHANGEABLE: Final = {signal.SIGKILL, signal.SIGSTOP}
_DEFAULTS: Final = tuple(n for n in signal.valid_signals() if n not in _UNCHANGEABLE)


def prepare_to_launch() -> None:
    """Have no sandbox inherit what this process has inherited, and make room for a file per attempt.

    Done when a driver is made. The usual soft limit of 1,024 open files is there for programs that use select(2).
    """
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names, not paths
        file = int(name)
        if file > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.set_inheritable(file, False)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS says "infinity" and takes less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def launch(
    program: str | Path,
    arguments: list[str],
    environment: Mapping[str, str],
    actions: FileActions,
) -> int:
    """Start it and return its pid, the leader of a new session. Raises OSError if it cannot be started."""
    return os.posix_spawn(
        program,
        arguments,
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_DEFAULTS,
    )
