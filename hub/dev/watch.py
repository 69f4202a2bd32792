"""The stack's end of the pipe to `hub.dev.watcher`, which outlives the stack by a moment.

The write end is close-on-exec (Python's default), so no other child holds it, and the kernel closes it whichever
way the stack ends.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from hub.dev.watcher import started


class Watch:
    """Reports to the watcher what has to be ended if the stack cannot do it itself."""

    def __init__(self, mark: str, env: Mapping[str, str], log: Path) -> None:
        read, write = os.pipe()
        try:
            with log.open("ab") as file:
                self._process = _start(mark, env, read, file)
        finally:
            os.close(read)
        self._write = write

    def child(self, pid: int) -> None:
        self._tell({"pid": pid, "started": started(pid)})

    def gone(self, pid: int) -> None:
        self._tell({"gone": pid})

    def then(self, argv: Sequence[str]) -> None:
        """Have this run once all children are ended."""
        self._tell({"then": list(argv)})

    def remove(self, folder: Path) -> None:
        """Have this folder removed at the very end."""
        self._tell({"remove": str(folder)})

    def close(self) -> None:
        """Say that everything is stopped, and let the watcher end. Of no effect the second time."""
        if self._write >= 0:
            self._tell({"done": True})
            os.close(self._write)
            self._write = -1
            self._process.wait()

    def _tell(self, fact: Mapping[str, object]) -> None:
        # Without a watcher the stack works all the same, it only can no longer be killed with -9 cleanly.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._write, json.dumps(fact).encode() + b"\n")


def _start(
    mark: str, env: Mapping[str, str], read: int, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-S", "-m", "hub.dev.watcher", mark],
        stdin=read,
        stdout=log,
        stderr=log,
        env=dict(env),
        start_new_session=True,
    )
