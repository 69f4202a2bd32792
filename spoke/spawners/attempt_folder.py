"""The files of one attempt, and the FIFO that holds its agent back.

    out, err   what the agent writes: the spools, kept for readers
    status     what the sandbox says about itself: pids at its start, exit code at its end
    hold       the FIFO: the agent waits until a byte comes; called `released` from then on
    input      what the agent finds at $FELLOE_INPUT

The FIFO is opened `O_RDWR` and given to the sandbox, which so is a reader and a writer of it: no daemon needs to keep
it open, the end of a daemon closes nothing, and no end-of-file ever releases the agent (with a pipe it did). Whether
somebody waits there is asked by opening it for writing without blocking: ENXIO means that nobody does. The sandbox lets
go of it a moment after it has read the byte, so the new name is what tells a released agent from one that is held; and
its mtime is when the byte came. First the byte, then the name: a daemon that dies in between leaves an agent that runs,
and its successor releases again.
"""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from shared.messages import AgentSpec, Stderr
from spoke.spawners.watching import file_size

_MADE_BY_US: Final = ("hold", "released", "status", "input", "out", "err")
# Enough for what bubblewrap or a shell says when it cannot go on.
_WORDS: Final = 2_000

FileActions = list[tuple[int, int, str, int, int] | tuple[int, int, int] | tuple[int, int]]


class AttemptFolder:
    """Names and small operations; holds no state and nothing open."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.out = self.path / "out"
        self.err = self.path / "err"
        self.status = self.path / "status"
        self.hold = self.path / "hold"
        self.released = self.path / "released"
        self.input = self.path / "input"

    def make(self, spec: AgentSpec) -> None:
        """Make the folder as for a first start: nothing of an attempt that never ran may be taken for this one's."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in _MADE_BY_US:
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
        os.mkfifo(self.hold, 0o600)
        file = os.open(self.input, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, spec.input.encode())
        finally:
            os.close(file)

    def output_actions(self, spec: AgentSpec) -> FileActions:
        """Return the file actions of `posix_spawn` that give the sandbox its standard streams."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions: FileActions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.out), flags, 0o600),
        ]
        if spec.stderr is Stderr.SEPARATE:
            actions.append((os.POSIX_SPAWN_OPEN, 2, str(self.err), flags, 0o600))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        return actions

    def output_bytes(self) -> int:
        """Return how much was written, both streams together."""
        return file_size(self.out) + file_size(self.err)

    def released_ms(self) -> int | None:
        """Return when the agent was released, Unix ms; None if it was not, or that is no longer known."""
        return _changed_ms(self.released)

    def status_ms(self) -> int | None:
        """Return when the sandbox last spoke of itself, Unix ms: at its end, if it recorded that."""
        return _changed_ms(self.status)

    def first_words(self) -> str:
        """Return how stderr begins: what the sandbox itself said, if the agent never ran."""
        for file in (self.err, self.out):
            with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
                return opened.read(_WORDS).decode(errors="replace").strip()
        return ""

    def is_held(self) -> bool:
        """Tell whether an agent waits for its release."""
        return self._poke(b"")

    def release(self) -> bool:
        """Send the byte; False if nobody waits for it, so that a second release does no harm."""
        is_released = self._poke(b"\n")
        if is_released:
            self.hold.rename(self.released)
        return is_released

    def clear(self) -> None:
        """Remove what only a living sandbox needs. Of no effect the second time."""
        for file in (self.hold, self.released, self.input):
            file.unlink(missing_ok=True)

    def _poke(self, data: bytes) -> bool:
        try:
            file = os.open(self.hold, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise
        try:
            if data:
                os.write(file, data)
        finally:
            os.close(file)
        return True


def _changed_ms(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return None
