"""Bounds on memory, processes and CPU that hold for a whole tree, and a list of who is in it.

Version 2 where its controllers are there, else version 1. One folder per attempt and hierarchy, named after the attempt:

    root            <hierarchy>/felloe/<attempt>
    other users     <hierarchy>/<the daemon's own cgroup>/felloe/<attempt>, where that was delegated to them

Under version 2 a cgroup that delegates controllers may hold no process of its own, so a service sets `Delegate=yes` and
`DelegateSubgroup=daemon` (systemd.resource-control(5)); then sandboxes live beside the daemon's own cgroup. Sandboxes
outlive the daemon, so the service also sets `KillMode=process`.

What a host does not give is missing from `controllers`, and the drivers declare it.

To move another process, the kernel first waits until every CPU has noticed (an RCU grace period): measured 6-24 ms
after a pause. A thread that moves itself, by writing 0 to `tasks`, needs no such wait, and what it starts begins where
it is. So under version 1 the daemon's own thread goes into the attempt's folders, starts the sandbox there, and comes
back: 0.3 ms. Version 2 keeps a process's threads together; there the sandbox is moved from outside, on a thread. So it is
where the daemon's own folders are not to be seen (a container without a cgroup namespace): no thread could come back.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from shared.messages import Limits
from spoke.spawners.watching import see_through, until

log = structlog.get_logger()

CONTROLLERS: Final = ("memory", "pids", "cpu")
MOUNT: Final = Path("/sys/fs/cgroup")

_PERIOD_US: Final = 100_000  # the kernel's default for CFS bandwidth
_LEAST_US: Final = 1_000  # and the least quota that it takes
_MOST_PIDS: Final = 4 * 1024 * 1024  # PID_MAX_LIMIT of the kernel
# The sandbox's own processes, which the agent did not ask for: the outer and the inner bubblewrap, or the shim.
_OWN_PIDS: Final = 2


class Cgroups:
    """The folders under which attempts get theirs: one per controller (version 1), or one for all (version 2)."""

    def __init__(
        self, bases: Mapping[str, Path], *, unified: bool, homes: Mapping[str, Path] | None = None
    ) -> None:
        """`homes` are the files that bring a thread back to where the daemon lives; without, none goes in."""
        self._bases = dict(bases)
        self._homes = dict(homes or {})
        self._unified = unified

    @classmethod
    def find(
        cls, *, is_root: bool, mount: Path = MOUNT, own: str | None = None, name: str = "felloe"
    ) -> "Cgroups":
        """Return what this host gives us, which may be nothing; makes the folder that holds the attempts'.

        `own` is the text of /proc/self/cgroup.
        """
        places = _own_places(own)
        try:
            offered = (mount / "cgroup.controllers").read_text().split()
        except OSError:
            offered = []
        if offered:
            base = mount / name if is_root else mount / _delegated(places.get("", "")) / name
            usable = _enable(base, [c for c in CONTROLLERS if c in offered])
            return cls(dict.fromkeys(usable, base), unified=True)
        bases = {c: mount / c / ("" if is_root else places.get(c, "")) / name for c in CONTROLLERS}
        usable_bases = {c: base for c, base in bases.items() if _is_usable(base, c)}
        homes = {c: mount / c / places.get(c, "") / "tasks" for c in usable_bases}
        can_come_back = all(os.access(home, os.W_OK) for home in homes.values())
        return cls(usable_bases, unified=False, homes=homes if can_come_back else None)

    @property
    def controllers(self) -> frozenset[str]:
        """What is enforced: some of "memory", "pids", "cpu"."""
        return frozenset(self._bases)

    def paths(self, name: str) -> tuple[str, ...]:
        """Return the folders of the attempt `name`, whether or not they are there."""
        return tuple(dict.fromkeys(str(base / name) for base in self._bases.values()))

    def inside(self, name: str, start: Callable[[], int]) -> int:
        """Call `start` so that the process it starts begins in the attempt's folders, where this host can do that;
        else `join` moves it. Returns its pid. Raises OSError, and what `start` raises."""
        with contextlib.ExitStack() as way_back:  # from each folder, whatever happens in another
            for controller, home in self._homes.items():
                way_back.callback(_put, home, "0")
                _put(self._bases[controller] / name / "tasks", "0")
            return start()

    async def join(self, paths: Sequence[str], pids: Sequence[int]) -> None:
        """Move in what could not begin inside; seen through even when cancelled, since a pid may be another's later."""
        if self._bases and not self._homes:
            await see_through(asyncio.to_thread(_join, paths, pids))

    def make(self, name: str) -> tuple[str, ...]:
        """Make the folders of the attempt `name`, without bounds yet. Raises OSError; then call `remove`."""
        paths = self.paths(name)
        for path in paths:
            Path(path).mkdir(exist_ok=True)
        return paths

    def bound(self, name: str, limits: Limits) -> None:
        """Set the bounds of the attempt `name`. Raises OSError, also where it already uses more.

        Only once no thread of ours is inside: under a tight bound the kernel would stop it, with Python's lock in its
        hands, or end the whole daemon for the attempt's memory.
        """
        for controller, base in self._bases.items():
            for file, value in _bounds(controller, limits, unified=self._unified):
                # Swap files are there only where swap is accounted.
                if value is not None and (not _is_optional(file) or (base / name / file).exists()):
                    _put(base / name / file, value)


def members(paths: Sequence[str]) -> list[int]:
    """Return who lives in any of the folders; zombies are not listed, nor are we, who visit to start somebody."""
    found: dict[int, None] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found.update(dict.fromkeys(map(int, Path(path, "cgroup.procs").read_text().split())))
    found.pop(os.getpid(), None)
    return list(found)


def kill(paths: Sequence[str]) -> None:
    """Send SIGKILL to everyone in it. Membership is the proof, so pids need no other match."""
    for pid in members(paths):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hurry(paths: Sequence[str]) -> None:
    """Lift the bound on CPU: to end, a killed process needs some too, and a tree under 1 % would take minutes."""
    for path in paths:
        for file, value in (("cpu.cfs_quota_us", "-1"), ("cpu.max", f"max {_PERIOD_US}")):
            with contextlib.suppress(OSError):
                _put(f"{path}/{file}", value)


async def empty(paths: Sequence[str]) -> None:
    """End everyone in it and return when nobody is left: again and again, since a tree may be forking."""

    def is_empty() -> bool:
        kill(paths)
        return not members(paths)

    await until(is_empty)


def out_of_memory(paths: Iterable[str]) -> bool:
    """Tell whether the kernel ended a process in it for its memory. False once the folders are gone."""
    return any(count > 0 for path in paths for count in _oom_kills(Path(path)))


async def remove(paths: Sequence[str]) -> None:
    """Remove the folders. Of no effect the second time."""
    left: list[str] = []
    # The kernel needs a moment after the last process has ended.
    for _ in range(50):
        left = [path for path in paths if not _is_removed(path)]
        if not left:
            return
        await until(lambda: not members(paths), most_s=0.002)
    log.warning("cgroup_left", paths=left, action="remove it by hand when it is empty")


def _join(paths: Iterable[str], pids: Sequence[int]) -> None:
    """Move processes in; one that has ended meanwhile is left to whoever waits for it."""
    for path in paths:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _put(f"{path}/cgroup.procs", str(pid))


def _put(path: str | Path, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, value.encode())
    finally:
        os.close(file)


def _is_removed(path: str) -> bool:
    try:
        Path(path).rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _bounds(controller: str, limits: Limits, *, unified: bool) -> Iterator[tuple[str, str | None]]:
    memory = str(limits.memory_bytes)
    quota = _quota(limits.cpu_milli)
    match controller:
        case "memory" if unified:
            yield "memory.max", memory
            yield "memory.swap.max", "0"
            yield "memory.oom.group", "1"
        case "memory":
            yield "memory.limit_in_bytes", memory
            yield "memory.memsw.limit_in_bytes", memory
        case "pids":
            yield "pids.max", str(min(limits.pids + _OWN_PIDS, _MOST_PIDS))
        case _ if unified:
            yield "cpu.max", f"{'max' if quota is None else quota} {_PERIOD_US}"
        case _:
            yield "cpu.cfs_period_us", str(_PERIOD_US)
            yield "cpu.cfs_quota_us", None if quota is None else str(quota)


def _is_optional(file: str) -> bool:
    return file in {"memory.swap.max", "memory.memsw.limit_in_bytes", "memory.oom.group"}


def _quota(cpu_milli: int) -> int | None:
    """Return µs of CPU per period, or None when the bound is all the CPUs there are."""
    if cpu_milli >= 1_000 * (os.cpu_count() or 1):
        return None
    return max(_LEAST_US, cpu_milli * _PERIOD_US // 1_000)


def _oom_kills(path: Path) -> Iterator[int]:
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            lines = (path / name).read_text().splitlines()
            yield from (int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _own_places(text: str | None) -> dict[str, str]:
    """Parse /proc/self/cgroup (cgroups(7)): controller → path without its slash; "" is version 2."""
    if text is None:
        try:
            text = Path("/proc/self/cgroup").read_text()
        except OSError:
            return {}
    places: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        places.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    return places


def _delegated(own: str) -> str:
    return own.removesuffix("daemon").rstrip("/") if own.endswith("/daemon") else own


def _is_usable(base: Path, controller: str) -> bool:
    """Make the version 1 folder, if its hierarchy is mounted and we may."""
    probe = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"}
    try:
        base.mkdir(exist_ok=True)
    except OSError:
        return False
    # An unmounted hierarchy may be an ordinary folder: then the kernel has put no files into it.
    if not (base / probe[controller]).exists():
        with contextlib.suppress(OSError):
            base.rmdir()
        return False
    return os.access(base, os.W_OK)


def _enable(base: Path, wanted: Sequence[str]) -> list[str]:
    """Make the version 2 folder and hand it controllers; return those that it really got."""
    # To move a process takes the right to write there, above both its old and its new place (cgroups(7)).
    if not os.access(base.parent / "cgroup.procs", os.W_OK):
        return []
    try:
        base.mkdir(exist_ok=True)
    except OSError:
        return []
    for folder in (base.parent, base):
        for controller in wanted:
            with contextlib.suppress(OSError):  # one that is refused must not cost the others
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
    try:
        got = (base / "cgroup.subtree_control").read_text().split()
    except OSError:
        return []
    return [controller for controller in wanted if controller in got]
