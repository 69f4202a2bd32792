"""The options of bubblewrap for one attempt: a pure function, so that what a sandbox may see can be read in one place.

The root is a tmpfs that bubblewrap cannot be told to size, and so is /dev: both become read-only at the end, and what
an agent may write to are the tmpfs on top of them, each with a size.

Inside, the agent is an ordinary user without capabilities, whatever the daemon is.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shared.messages import Network
from spoke.spawners.base import Sandbox
from spoke.spawners.environment import environment

WORK: Final = "/work"
INPUT: Final = "/felloe/input"

_ISOLATE: Final = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
    *("--clearenv", "--new-session", "--uid", "1000", "--gid", "1000", "--hostname", "felloe"),
)
# Merged into /usr on today's systems, folders of their own on older ones.
_BESIDE_USR: Final = ("bin", "sbin", "lib", "lib32", "lib64")
# What programs under /usr need to be found, linked, and to speak TLS; nothing that names users or hosts.
_ETC: Final = ("alternatives", "ld.so.cache", "localtime", "ssl", "pki", "ca-certificates")
_ETC_OF_NETWORK: Final = ("hosts", "nsswitch.conf", "resolv.conf", "services")
# As container engines have it; POSIX semaphores and Python's multiprocessing need some.
_SHM_BYTES: Final = 64 * 1024**2


def options(sandbox: Sandbox, input_file: Path) -> list[str]:
    """Return what goes to bubblewrap by `--args`: never on its command line, which everybody may read.

    Raises SetupError for an environment that cannot be set.
    """
    spec = sandbox.spec
    found = [*_ISOLATE, *_system()]
    if spec.network is Network.HOST:
        found += ["--share-net", *_from_etc(_ETC_OF_NETWORK)]
    if spec.handles_sigterm:
        found += ["--as-pid-1"]
    found += ["--proc", "/proc", "--dev", "/dev", *_writable(spec.limits.disk_bytes)]
    for mount in sandbox.mounts:
        found += ["--ro-bind", mount.source, mount.target]
    found += ["--ro-bind", str(input_file), INPUT]
    found += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
    for name, value in environment(sandbox, home=WORK, input_path=INPUT).items():
        found += ["--setenv", name, value]
    return found


def _writable(size: int) -> Iterator[str]:
    for target, most in ((WORK, size), ("/tmp", size), ("/dev/shm", min(size, _SHM_BYTES))):  # noqa: S108 - inside
        yield from ("--size", str(most), "--tmpfs", target)


@functools.cache
def _system() -> tuple[str, ...]:
    found = ["--ro-bind", "/usr", "/usr"]
    for name in _BESIDE_USR:
        path = Path("/", name)
        if path.is_symlink():
            found += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    return (*found, *_from_etc(_ETC))


@functools.cache
def _from_etc(names: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        path = Path("/etc", name)
        if path.exists():
            # A link may lead to where the sandbox has nothing (/run/…/resolv.conf): bind what it leads to.
            found += ["--ro-bind", str(path.resolve()), str(path)]
    return tuple(found)
