"""One daemon per state folder.

Two daemons on one folder would take turns at the epoch and adopt each other's sandboxes. `flock` goes with the
process: whatever way the holder dies, the lock is free, and there is no stale file to remove by hand. The file's text
only says who holds it; the lock is what counts.
"""

import fcntl
import os
from pathlib import Path

from shared.errors import ConfigError


class FolderLock:
    """An exclusive claim on a folder, from `take` to `free` or the end of the process."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def take(cls, folder: Path) -> "FolderLock":
        """Claim `folder`; raises ConfigError that says who has it."""
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another daemon"
            os.close(file)
            raise ConfigError(f"the state folder {folder} is in use by {holder}") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        return cls(file)

    def free(self) -> None:
        """Give the folder up. Of no effect the second time."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
