"""The envelope: DSSE's own example, an independent implementation as the oracle, and the order of the checks."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from shared.envelope import Refusal, RefusalError, pack, pae, unpack
from shared.messages import MAX_ENVELOPE_BYTES, Purpose
from tests.helpers import builders as a

COMMANDS = frozenset({Purpose.COMMAND})
KEYS = {a.HUB.key_id: a.HUB.public}
BOTH = KEYS | {a.GENEVA.key_id: a.GENEVA.public}


def sealed(payload: bytes, *signers: a.KeySigner, purpose: str = Purpose.COMMAND) -> bytes:
    return pack(purpose, payload, [(by.key_id, by.sign(pae(purpose, payload))) for by in signers])


def refusal_of(data: bytes, **changes: object) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        unpack(data, **{"allowed": COMMANDS, "keys": KEYS} | changes)  # type: ignore[arg-type]
    return caught.value.refusal


def test_the_pre_authentication_encoding_is_that_of_the_specification():
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, "Test Vectors"
    encoded = pae("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_in_the_encoding_count_bytes_not_letters():
    assert pae("ü", b"") == "DSSEv1 2 ü 0 ".encode()


@given(st.binary(max_size=300))
def test_any_bytes_come_back_as_they_were_signed(payload: bytes):
    purpose, received, by = unpack(sealed(payload, a.HUB), COMMANDS, KEYS)
    assert (purpose, received, by) == (Purpose.COMMAND, payload, {a.HUB.key_id})


@given(st.binary(max_size=300))
def test_securesystemslib_verifies_ours(payload: bytes):
    theirs = Envelope.from_dict(json.loads(sealed(payload, a.HUB)))
    key = SSlibKey.from_crypto(a.HUB.public, keyid=a.HUB.key_id)
    assert list(theirs.verify([key], 1)) == [a.HUB.key_id]
    assert theirs.payload == payload
    assert theirs.payload_type == Purpose.COMMAND


@given(st.binary(max_size=300))
def test_we_verify_what_securesystemslib_signed(payload: bytes):
    key = SSlibKey.from_crypto(a.HUB.public, keyid=a.HUB.key_id)
    theirs = Envelope(payload, Purpose.COMMAND.value, {})
    theirs.sign(CryptoSigner(a.HUB._key, key))
    written = theirs.to_dict()
    ours = {name: written[name] for name in ("payloadType", "payload", "signatures")}
    assert unpack(a.envelope_bytes(ours), COMMANDS, KEYS)[1] == payload


def test_too_many_bytes_are_refused_before_anything_else():
    assert refusal_of(b"x" * (MAX_ENVELOPE_BYTES + 1)) is Refusal.TOO_LARGE


def test_a_type_that_is_not_allowed_here_is_refused_before_its_signature_is_looked_at():
    data = sealed(b"{}", a.STRANGER, purpose=Purpose.EVENT)
    assert refusal_of(data) is Refusal.WRONG_TYPE


def test_an_unknown_key_and_a_wrong_signature_are_told_apart():
    assert refusal_of(sealed(b"{}", a.STRANGER)) is Refusal.UNKNOWN_KEY
    lying = pack(
        Purpose.COMMAND, b"{}", [(a.HUB.key_id, a.STRANGER.sign(pae(Purpose.COMMAND, b"{}")))]
    )
    assert refusal_of(lying) is Refusal.BAD_SIGNATURE


def test_a_signature_over_the_bare_payload_is_none_over_its_type():
    bare = pack(Purpose.COMMAND, b"{}", [(a.HUB.key_id, a.HUB.sign(b"{}"))])
    assert refusal_of(bare) is Refusal.BAD_SIGNATURE


def test_a_signature_under_one_type_is_none_under_another():
    moved = sealed(b"{}", a.HUB, purpose=Purpose.ACK).replace(b".ack.", b".command.")
    assert refusal_of(moved) is Refusal.BAD_SIGNATURE


def test_a_threshold_needs_that_many_keys():
    assert len(unpack(sealed(b"{}", a.HUB, a.GENEVA), COMMANDS, BOTH, threshold=2)[2]) == 2
    assert refusal_of(sealed(b"{}", a.HUB), keys=BOTH, threshold=2) is Refusal.BAD_SIGNATURE


def test_the_same_key_twice_does_not_reach_a_threshold_of_two():
    twice = sealed(b"{}", a.HUB, a.HUB)
    assert refusal_of(twice, keys=BOTH, threshold=2) is Refusal.BAD_SIGNATURE
    alias = {a.HUB.key_id: a.HUB.public, a.GENEVA.key_id: a.HUB.public}
    signature = a.HUB.sign(pae(Purpose.COMMAND, b"{}"))
    two_names = pack(Purpose.COMMAND, b"{}", [(name, signature) for name in alias])
    assert refusal_of(two_names, keys=alias, threshold=2) is Refusal.BAD_SIGNATURE


def test_a_wrong_signature_beside_a_right_one_does_no_harm():
    right = a.envelope_dict(sealed(b"{}", a.HUB))
    wrong = {"keyid": a.STRANGER.key_id, "sig": base64.b64encode(b"x" * 64).decode()}
    right["signatures"].insert(0, wrong)
    assert unpack(a.envelope_bytes(right), COMMANDS, KEYS)[1] == b"{}"


def test_nobody_makes_us_verify_a_thousand_signatures():
    assert refusal_of(sealed(b"{}", *[a.HUB] * 17)) is Refusal.NOT_AN_ENVELOPE


@pytest.mark.parametrize("length", [0, 1, 63, 65, 1000])
def test_a_signature_of_another_length_is_a_wrong_one(length: int):
    data = pack(Purpose.COMMAND, b"{}", [(a.HUB.key_id, b"x" * length)])
    assert refusal_of(data) is Refusal.BAD_SIGNATURE
