"""The embedded valkey-server of one spoke: durable to the last write, on a Unix socket that only we can open."""

from collections.abc import Sequence
from pathlib import Path


def argv(program: Path, *, folder: Path, socket: Path) -> Sequence[str]:
    """Return the command line; `folder` keeps the append-only file between runs."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": "512mb",
        "maxmemory-policy": "noeviction",
        # Snapshots would only repeat what the append-only file has.
        "save": "",
        "daemonize": "no",
        # A title of its own would lie over its environment, where the stack's mark is.
        "set-proc-title": "no",
    }
    return [
        str(program),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]


def url(socket: Path) -> str:
    return f"unix://{socket}"
