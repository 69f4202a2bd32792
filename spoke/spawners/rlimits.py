"""Bounds on single processes, inherited by all that they make. They hold where no cgroup does, but each for itself."""

import contextlib
import resource
from collections.abc import Iterable
from typing import Final

from shared.messages import Limits

OPEN_FILES: Final = 4_096  # more than language runtimes need, far fewer than the daemon's own


def file_size(limits: Limits) -> int:
    """Return the size in bytes that no file may exceed.

    The spools are files of the host, and the output cap is looked at only a few times a second: this is what holds in
    between. One byte more than the cap, so that what stops here is seen to be over it.
    """
    return max(limits.disk_bytes, 2 * limits.output_bytes + 1)


def bound(pids: Iterable[int], limits: Limits) -> None:
    """Bound processes that hold still (Linux only); one that has ended is left to whoever waits for it."""
    wanted = (
        (resource.RLIMIT_CORE, 0),  # a core file would go to the host
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, file_size(limits)),
    )
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            for kind, most in wanted:
                _, hard = resource.prlimit(pid, kind)
                lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.prlimit(pid, kind, (lowest, lowest))
