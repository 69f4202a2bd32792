"""Waiting: for a process to end, for something to become true, for output to grow too large.

2,000 attempts are watched by one event loop, so each costs one file descriptor and no timer: a pidfd wakes the loop
when its process ends, and one ticker looks at the sizes of all spools.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from spoke.spawners.processes import is_alive, pidfd, reap

T = TypeVar("T")

# A steady writer of 1 GB/s gets that far past its cap; the file size limit stops it where the ticker is too slow.
_LOOK_S: Final = 0.25
_POLL_S: Final = 0.05  # where there is no pidfd


async def until(
    holds: Callable[[], bool], *, first_s: float = 0.0003, most_s: float = 0.02
) -> None:
    """Return once `holds()`; looks at once, then at growing distances."""
    pause = first_s
    while not holds():
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, most_s)


async def gone(pid: int, started: int) -> None:
    """Return once that very process has ended, at once if it has; takes its exit status if it was our child."""
    try:
        file = pidfd(pid, started)
    except ProcessLookupError:
        reap(pid)
        return
    if file is None:
        await until(lambda: not is_alive(pid, started), first_s=_POLL_S, most_s=_POLL_S)
    else:
        try:
            await _readable(file)
        finally:
            os.close(file)
    reap(pid)


async def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile; the cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            await asyncio.wait([task])
        raise


async def _readable(file: int) -> None:
    loop = asyncio.get_running_loop()
    seen = loop.create_future()
    loop.add_reader(file, lambda: seen.done() or seen.set_result(None))
    try:
        await seen
    finally:
        loop.remove_reader(file)


class OutputCaps:
    """Looks at the size of what each watched attempt has written, all of them in one round, four times a second."""

    def __init__(self) -> None:
        self._watched: dict[object, tuple[Callable[[], int], int, Callable[[], object]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watch(
        self, size: Callable[[], int], cap: int, exceeded: Callable[[], object]
    ) -> Generator[None]:
        """While inside, call `exceeded` once if `size()` is over `cap` bytes."""
        key = object()
        self._watched[key] = (size, cap, exceeded)
        self._start()
        try:
            yield
        finally:
            self._watched.pop(key, None)
            if not self._watched and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        for key, (size, cap, exceeded) in list(self._watched.items()):
            if size() > cap:
                del self._watched[key]
                exceeded()
        if self._watched:
            self._start()


def file_size(path: Path) -> int:
    """Return the size in bytes, 0 if there is no such file."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
