"""Which keys may enter, and how they lie on disk."""

import os
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared import keys
from shared.errors import ConfigError
from shared.ids import sha256
from shared.signers import KeySigner
from tests.helpers import builders as a

P = 2**255 - 19
# The points of small order (RFC 8032's curve): their y, and y + p where that still fits 255 bits.
SMALL_ORDER_Y = [
    0,
    1,
    P - 1,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
]


def encodings_of_small_order() -> list[bytes]:
    values = [*SMALL_ORDER_Y, P, P + 1]
    return [(y | sign << 255).to_bytes(32, "little") for y in values for sign in (0, 1)]


def double(y: int) -> int:
    """The y of twice a point with this y: edwards25519's doubling, in y alone (x^2 follows from the curve)."""
    d = -121665 * pow(121666, -1, P) % P
    xx = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    return (y * y + xx) * pow(2 - (y * y - xx), -1, P) % P


def test_the_list_is_complete_for_eight_doubled_is_nothing():
    for y in SMALL_ORDER_Y:
        assert double(double(double(y))) == 1
    # Orders 1, 2 and 4 have the y 1, -1 and 0; the four points of order 8 share two y.
    assert sorted(double(y) for y in SMALL_ORDER_Y[3:]) == [0, 0]


@pytest.mark.parametrize("raw", encodings_of_small_order(), ids=lambda raw: raw.hex()[:12])
def test_no_encoding_of_a_point_of_small_order_is_a_key(raw: bytes):
    with pytest.raises(ValueError, match="small order"):
        keys.public_key(raw)


def test_under_such_a_key_one_signature_would_fit_any_message():
    weak = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    signature = (1).to_bytes(32, "little") + bytes(32)
    weak.verify(signature, b"kill")
    weak.verify(signature, b"spawn")


@pytest.mark.parametrize("extra", range(19))
def test_a_key_has_one_encoding(extra: int):
    with pytest.raises(ValueError, match="not canonical"):
        keys.public_key((P + extra).to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_has_32_bytes(length: int):
    with pytest.raises(ValueError, match="32 bytes"):
        keys.public_key(b"\x09" * length)


def test_ordinary_keys_pass():
    for _ in range(200):
        public = Ed25519PrivateKey.generate().public_key()
        assert keys.public_key(public.public_bytes_raw()) == public


def test_a_keys_id_is_the_hash_of_its_bytes():
    assert keys.key_id(a.HUB.public) == sha256(a.HUB.public.public_bytes_raw()) == a.HUB.key_id


def test_a_new_pair_can_be_read_back_and_signs(tmp_path: Path):
    path = tmp_path / "keys" / "hub"
    public = keys.new_key_pair(path, "hub")
    signer = KeySigner.from_file(path, "hub")
    assert keys.read_public_key(tmp_path / "keys" / "hub.pub", "hub") == public == signer.public
    public.verify(signer.sign(b"x"), b"x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in path.parent.iterdir()) == ["hub", "hub.pub"]


def test_a_key_is_never_overwritten(tmp_path: Path):
    keys.new_key_pair(tmp_path / "hub", "hub")
    before = (tmp_path / "hub").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        keys.new_key_pair(tmp_path / "hub", "hub")
    assert (tmp_path / "hub").read_bytes() == before


def test_a_pair_that_was_cut_short_after_its_public_half_can_be_made_again(tmp_path: Path):
    keys.new_key_pair(tmp_path / "hub", "hub")
    (tmp_path / "hub").unlink()
    public = keys.new_key_pair(tmp_path / "hub", "hub")
    assert keys.read_public_key(tmp_path / "hub.pub", "hub") == public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_private_key_that_others_can_open_is_refused_with_the_remedy(tmp_path: Path, mode: int):
    keys.new_key_pair(tmp_path / "hub", "hub")
    (tmp_path / "hub").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.read_private_key(tmp_path / "hub", "hub")


def test_a_key_for_another_purpose_is_refused(tmp_path: Path):
    keys.new_key_pair(tmp_path / "k", "spoke")
    with pytest.raises(ConfigError, match="is a spoke key, a hub key is needed"):
        keys.read_private_key(tmp_path / "k", "hub")
    with pytest.raises(ConfigError, match="is a spoke key, a hub key is needed"):
        keys.read_public_key(tmp_path / "k.pub", "hub")


@pytest.mark.parametrize("suffix", ["", ".pub"])
def test_a_missing_key_file_says_how_to_make_one(tmp_path: Path, suffix: str):
    read = keys.read_public_key if suffix else keys.read_private_key
    with pytest.raises(ConfigError, match="felloe-hub keys new"):
        read(tmp_path / f"hub{suffix}", "hub")


BROKEN_FILES = [
    b"",
    b"not json",
    b"\xff\xfe",
    b"[]",
    b"{}",
    b'{"felloe":"private-key/1","purpose":"hub","seed":"AAAA"}',
    b'{"felloe":"public-key/1","purpose":"hub","public":"AAAA"}',
    b'{"felloe":"private-key/1","purpose":"hub","seed":"' + b"A" * 43 + b'=","more":1}',
    b'{"felloe":"private-key/2","purpose":"hub","seed":"' + b"A" * 43 + b'="}',
    b'{"felloe":"public-key/2","purpose":"hub","public":"' + b"C" * 43 + b'="}',
]


@pytest.mark.parametrize("content", BROKEN_FILES, ids=range(len(BROKEN_FILES)))
def test_a_broken_key_file_is_named_and_never_half_read(tmp_path: Path, content: bytes):
    path = tmp_path / "hub"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (keys.read_private_key, keys.read_public_key):
        with pytest.raises(ConfigError, match=r"hub is not a (private|public) key file"):
            read(path, "hub")


def test_a_public_key_file_with_a_weak_key_is_refused(tmp_path: Path):
    weak = keys.PublicKeyFile(purpose="hub", public=(1).to_bytes(32, "little"))
    (tmp_path / "hub.pub").write_bytes(msgspec.json.encode(weak))
    with pytest.raises(ConfigError, match="small order"):
        keys.read_public_key(tmp_path / "hub.pub", "hub")


def test_a_folder_in_place_of_a_key_is_an_error_of_the_settings(tmp_path: Path):
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.read_private_key(tmp_path, "hub")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    keys.write_whole(path, b"old", mode=0o600)

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        keys.write_whole(path, b"new", mode=0o600)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
