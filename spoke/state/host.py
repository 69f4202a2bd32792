"""Which host this is. A queue belongs to one host, since only there its sandboxes can be found.

The system's own machine id where there is one; otherwise one that is made once and kept in the state folder, so that
a container with a persistent volume keeps its identity.
"""

import os
import re
import uuid
from pathlib import Path
from typing import Final

MACHINE_ID: Final = Path("/etc/machine-id")  # machine-id(5): 32 lower-case hex digits
_PATTERN: Final = re.compile(r"[0-9a-f]{32}")


def host_id(folder: Path, machine_id: Path = MACHINE_ID) -> str:
    """Return 32 hex digits that stay the same for this host; writes `host` into `folder` when it must make them."""
    for file in (machine_id, folder / "host"):
        found = _read(file)
        if found is not None:
            return found
    made = uuid.uuid4().hex
    _write(folder / "host", made)
    return made


def _read(file: Path) -> str | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return text if _PATTERN.fullmatch(text) else None


def _write(file: Path, text: str) -> None:
    """Write all of it or nothing, durably: a half-written id would be another host after the next start."""
    new = file.with_name(f"{file.name}.new")
    with new.open("w") as opened:
        opened.write(f"{text}\n")
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
