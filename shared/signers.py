"""The port for whoever holds a private key: a key file now, PKCS#11 with the issue on trust.

A signer signs bytes it does not understand; which bytes is decided by `shared.trust`.
"""

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.ids import KeyId
from shared.keys import key_id, read_private_key


class Signer(Protocol):
    """Holds one Ed25519 key. `sign` may be called from any thread and has no effect but its result."""

    @property
    def key_id(self) -> KeyId: ...

    @property
    def public(self) -> Ed25519PublicKey: ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data`."""
        ...


class KeySigner:
    """Signs with a key in memory."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key()
        self.key_id = key_id(self.public)

    @classmethod
    def from_file(cls, path: Path, purpose: str) -> "KeySigner":
        """Read the key file at `path`; raises ConfigError."""
        return cls(read_private_key(path, purpose))

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)
