"""Ed25519 keys: where they enter, and how they lie on disk.

`cryptography` accepts small-order public keys, under which one fixed signature verifies for any message, so every
key that enters passes `public_key`. A private key lies in a file of mode 0600 that was written whole or not at all;
files that others can read are refused. (Encryption at rest comes with the issue on trust.)
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import ConfigError
from shared.ids import KeyId, sha256

_P: Final = 2**255 - 19
# The y coordinates of the eight points of small order on edwards25519 (RFC 7748 and RFC 8032 name the curve;
# listed, among others, in "Taming the many EdDSAs", Chalkias et al. 2020, table 1).
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)


class PrivateKeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of a private key: raw Ed25519 seed, 32 bytes."""

    felloe: Literal["private-key/1"] = "private-key/1"
    purpose: str
    seed: bytes


class PublicKeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of a public key: 32 bytes, RFC 8032 encoding."""

    felloe: Literal["public-key/1"] = "public-key/1"
    purpose: str
    public: bytes


def public_key(raw: bytes) -> Ed25519PublicKey:
    """Return the key, or raise ValueError for one that is not canonical or of small order."""
    if len(raw) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    if y >= _P or y in _SMALL_ORDER_Y:
        raise ValueError("not a usable Ed25519 public key: small order or not canonical")
    return Ed25519PublicKey.from_public_bytes(raw)


def key_id(key: Ed25519PublicKey) -> KeyId:
    """Return the key's id: SHA-256 of its raw 32 bytes, in hex."""
    return KeyId(sha256(key.public_bytes_raw()))


def new_key_pair(path: Path, purpose: str) -> Ed25519PublicKey:
    """Write a new pair, `path` (0600) and `path`.pub, and return the public half; refuses to overwrite.

    The private half is written last: a pair exists when it does, so a call that was cut short may be repeated.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: a key is never overwritten; move it away first")
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed = private.private_bytes_raw()
    shown = msgspec.json.encode(PublicKeyFile(purpose=purpose, public=public.public_bytes_raw()))
    write_whole(path.with_name(f"{path.name}.pub"), shown, mode=0o644)
    write_whole(path, msgspec.json.encode(PrivateKeyFile(purpose=purpose, seed=seed)), mode=0o600)
    return public


def read_private_key(path: Path, purpose: str) -> Ed25519PrivateKey:
    """Read a private key; raises ConfigError if it is absent, open to others, or for another purpose."""
    if _mode(path) & 0o077:
        raise ConfigError(f"{path} can be read by others: chmod 600 {path}")
    try:
        found = msgspec.json.decode(_read(path), type=PrivateKeyFile)
        key = Ed25519PrivateKey.from_private_bytes(found.seed)
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is not a private key file: {error}") from None
    if found.purpose != purpose:
        raise ConfigError(f"{path} is a {found.purpose} key, a {purpose} key is needed here")
    return key


def read_public_key(path: Path, purpose: str) -> Ed25519PublicKey:
    """Read a public key; raises ConfigError if it is absent, unusable, or for another purpose."""
    try:
        found = msgspec.json.decode(_read(path), type=PublicKeyFile)
        key = public_key(found.public)
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is not a public key file: {error}") from None
    if found.purpose != purpose:
        raise ConfigError(f"{path} is a {found.purpose} key, a {purpose} key is needed here")
    return key


def write_whole(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file durably, whole or not at all: temporary file, fsync, rename, fsync of the folder."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise _no_file(path, error) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _no_file(path, error) from None


def _no_file(path: Path, error: OSError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"no key file at {path}: make one with `felloe-hub keys new {path}`")
    return ConfigError(f"the key file {path} cannot be read: {error.strerror}")
