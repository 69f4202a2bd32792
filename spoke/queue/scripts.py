"""The Lua scripts, put together once: flags, key names, prelude, guard, body.

A script changes all or nothing. Where memory has run out, a server refuses one as a whole before its first write,
unless it is flagged `allow-oom`: that is everything that leads towards an end, and every kill. What starts something
new (spawns, leases) has to wait until acknowledgements have made room.
"""

import hashlib
from importlib import resources
from typing import Final

import msgspec

from spoke.queue import names

_READS: Final = frozenset({"leased", "events", "counts", "inventory", "look"})
_WAIT_FOR_ROOM: Final = frozenset({"intake", "lease"})
_UNGUARDED: Final = frozenset({"take_over"})
_FILES: Final = (
    "take_over",
    "intake",
    "lease",
    "started",
    "finish",
    "hand_back",
    "acknowledge",
    "restart_journal",
    *sorted(_READS),
)
# The same script for an envelope of kills, which are taken in whatever the memory says.
INTAKE_OF_KILLS: Final = "intake_of_kills"


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The whole source, and the SHA-1 by which the server knows it once it has run."""

    source: str
    sha1: str


def load(spoke: str) -> dict[str, Script]:
    """Return every script of this spoke's queue by its name."""
    bodies = {name: _read(name) for name in (*_FILES, "prelude", "guard")}
    scripts = {name: _assemble(name, name, bodies, spoke) for name in _FILES}
    scripts[INTAKE_OF_KILLS] = _assemble(INTAKE_OF_KILLS, "intake", bodies, spoke)
    return scripts


def _assemble(name: str, body: str, bodies: dict[str, str], spoke: str) -> Script:
    guard = "" if name in _UNGUARDED else bodies["guard"]
    source = "\n".join(
        (_shebang(name), names.as_lua(spoke), bodies["prelude"], guard, bodies[body])
    )
    # Redis names scripts by SHA-1; nothing rests on its strength.
    return Script(
        source=source, sha1=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    )


def _shebang(name: str) -> str:
    if name in _WAIT_FOR_ROOM:
        return "#!lua"
    return "#!lua flags=no-writes" if name in _READS else "#!lua flags=allow-oom"


def _read(name: str) -> str:
    return resources.files("spoke.queue").joinpath("scripts", f"{name}.lua").read_text()
