"""What agents wrote: plain append-only files, one folder per attempt.

    spools/<agent>/<gen>/<attempt>/out     and `err`, if the agent's stderr is kept apart

A position is (attempt, stream, byte offset); it survives every restart, because the sandbox itself writes the file and
nobody rewrites it. So a reader must be able to tell three things apart: a spool that is empty (nothing was written), one
that is missing (dropped, or never made), and one that is shorter than a position that was already given out (truncated by
somebody). The last two are errors here, and become explicit gaps in a log stream.

Folders are made by whoever writes first, so a `simulated` agent without output costs no disk.
"""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from shared.errors import FelloeError, NotFoundError
from shared.messages import LogStream
from spoke.state.handles import Key


class SpoolMissingError(NotFoundError):
    """There is no such spool: it was dropped, or nothing ever made it."""

    code = "spool_missing"


class SpoolTruncatedError(FelloeError):
    """The spool is shorter, by now `size` bytes, than the offset asked for."""

    code = "spool_truncated"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class Spools:
    """The output of attempts. Reads are of files that grow; a short read means that this is all, so far."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "spools"

    def folder(self, agent: str, gen: int, attempt: int) -> Path:
        """Return where an attempt keeps its files. The sandbox makes it when it has something to put there."""
        return self._root / agent / str(gen) / str(attempt)

    def attempts(self, agent: str, gen: int) -> list[int]:
        """Return the attempts that have a folder, ascending."""
        found = _folders(self._root / agent / str(gen))
        return sorted(int(folder.name) for folder in found if folder.name.isdecimal())

    def size(
        self, agent: str, gen: int, attempt: int, stream: LogStream = LogStream.OUT
    ) -> int | None:
        """Return how many bytes were written so far, or None if the spool is missing."""
        try:
            return (self.folder(agent, gen, attempt) / stream.value).lstat().st_size
        except FileNotFoundError:
            return None

    def read(  # noqa: PLR0917 - a position has that many parts
        self, agent: str, gen: int, attempt: int, stream: LogStream, offset: int, limit: int
    ) -> bytes:
        """Return up to `limit` bytes from `offset` on; b"" at the end.

        Raises SpoolMissingError and SpoolTruncatedError.
        """
        path = self.folder(agent, gen, attempt) / stream.value
        try:
            # An agent without isolation could put a link here that leads to another file of ours, or a FIFO, which
            # would keep us waiting for its writer.
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise SpoolMissingError(f"no spool {path}") from None
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise SpoolMissingError(f"no spool {path}")
            size = found.st_size
            if offset > size:
                raise SpoolTruncatedError(
                    f"{path} has {size} bytes, {offset} were there before", size
                )
            return os.pread(file, limit, offset)
        finally:
            os.close(file)

    def drop(self, key: Key) -> None:
        """Remove an attempt's files. Of no effect the second time."""
        folder = self.folder(*key)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(folder.parent, self._root)

    def drop_older_than(
        self, now_ms: int, keep_ms: int, *, alive: Collection[Key] = frozenset()
    ) -> list[Key]:
        """Remove, and return, the attempts that wrote nothing for `keep_ms`; `alive` ones may just be silent."""
        old = [
            key
            for key in self._all()
            if key not in alive and self._newest_ms(key) + keep_ms < now_ms
        ]
        for key in old:
            self.drop(key)
        return old

    def _all(self) -> list[Key]:
        return [
            Key(agent.name, int(gen.name), attempt)
            for agent in _folders(self._root)
            for gen in _folders(agent)
            if gen.name.isdecimal()
            for attempt in self.attempts(agent.name, int(gen.name))
        ]

    def _newest_ms(self, key: Key) -> int:
        folder = self.folder(*key)
        try:
            times = [folder.stat().st_mtime_ns, *(f.lstat().st_mtime_ns for f in folder.iterdir())]
        except FileNotFoundError:  # something in it went away meanwhile: so it is in use
            return 2**63
        return max(times) // 1_000_000


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone already
            return
        folder = folder.parent
