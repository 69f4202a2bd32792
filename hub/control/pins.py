"""The spokes whose keys are pinned: `<spoke>.pub` files in one folder, until there is enrolment.

The folder is read again when an unknown spoke speaks, so that a new key file needs no restart.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.errors import ConfigError
from shared.ids import NAME_PATTERN, KeyId
from shared.keys import key_id, read_public_key

log = structlog.get_logger()

Keys = dict[str, Mapping[KeyId, Ed25519PublicKey]]


class Pins:
    """Spoke → its key, as last adopted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: Keys = {}

    def read(self) -> Keys:
        """Read the folder; `adopt` what it returns. A file that cannot be used is left out, and said."""
        found: Keys = {}
        for path in sorted(self._folder.glob("*.pub")):
            if re.match(NAME_PATTERN, path.stem) is None:
                log.warning("pin_ignored", path=str(path), reason="not a spoke's name")
                continue
            try:
                key = read_public_key(path, "spoke")
            except ConfigError as error:
                log.warning("pin_ignored", path=str(path), reason=str(error))
                continue
            found[path.stem] = {key_id(key): key}
        return found

    def adopt(self, found: Keys) -> None:
        """Trust these keys from now on: after all these spokes were entered in the database."""
        self._keys = found

    def keys_of(self, spoke: str) -> Mapping[KeyId, Ed25519PublicKey]:
        """Return a spoke's keys, empty for one that is not pinned."""
        return self._keys.get(spoke, {})
