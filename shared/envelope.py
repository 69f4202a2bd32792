"""DSSE v1.0.2 (Dead Simple Signing Envelope): sign bytes, never objects.

The signature covers the pre-authentication encoding of the payload type and of the *received* bytes, and those
same bytes are decoded afterwards: nothing is serialised again, so no canonical JSON is needed. The key decides the
algorithm (Ed25519); a `keyid` is only a hint that saves tries. https://github.com/secure-systems-lab/dsse

This module knows bytes, keys and signatures; what a message means and who may say it is `shared.trust`.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from shared.errors import FelloeError
from shared.ids import KeyId
from shared.messages import MAX_ENVELOPE_BYTES, Purpose


class Refusal(StrEnum):
    """Why trust or policy said no. Named, counted, and where it concerns an item, signed and audited."""

    # the envelope
    TOO_LARGE = "too_large"  # over 256 KiB, or an item over 64 KiB
    NOT_AN_ENVELOPE = "not_an_envelope"  # no DSSE envelope
    WRONG_TYPE = "wrong_type"  # a payload type that has no business on this subject
    UNKNOWN_KEY = "unknown_key"  # not signed by a key in that role
    BAD_SIGNATURE = "bad_signature"  # a known key, but not its signature over these bytes
    MALFORMED = "malformed"  # not exactly the fields, types and bounds of its purpose
    NOT_CANONICAL = "not_canonical"  # not the one encoding: a key twice, whitespace, loose base64
    # its header
    WRONG_FEDERATION = "wrong_federation"  # of another trust root
    WRONG_ISSUER = "wrong_issuer"  # of another hub or spoke than the key belongs to
    WRONG_AUDIENCE = "wrong_audience"  # for another spoke
    WRONG_INCARNATION = "wrong_incarnation"  # for another life of this spoke's journal
    WRONG_ANSWER = "wrong_answer"  # the answer to another request
    EXPIRED = "expired"  # its time is over
    FROM_THE_FUTURE = "from_the_future"  # over 30 s ahead of our clock
    WINDOW_TOO_LONG = "window_too_long"  # valid for over ten minutes
    MIXED_KILL = "mixed_kill"  # kills together with something else
    SPOKE_CLOCK = (
        "spoke_clock"  # our clock is over 30 s behind the newest signed time, so it cannot judge
    )
    # an item
    EQUIVOCATION = (
        "equivocation"  # an id that we know, with other bytes: changes nothing, raises the alarm
    )
    REPLAYED = "replayed"  # an id that we know, byte for byte: no effect; the hub's resends too
    QUEUE_FULL = "queue_full"  # no room at this spoke for now: the hub places it again
    POLICY = "policy"  # the site owner's veto: the hub tries elsewhere
    SUPERSEDED = "superseded"  # a newer generation or a newer wanted state is known here


class RefusalError(FelloeError):
    """Trust or policy said no."""

    code = "refused"

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(f"{refusal}: {detail}" if detail else str(refusal))
        self.refusal = refusal


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keyid: str
    sig: bytes


# Enough for any threshold of root keys. Each signature costs a verification of 60 us, which nobody may make us spend
# by the thousand.
_MAX_SIGNATURES: Final = 16


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    payloadType: str  # noqa: N815 - DSSE's own spelling
    payload: bytes
    signatures: Annotated[list[_Signature], Meta(max_length=_MAX_SIGNATURES)]


_decode = msgspec.json.Decoder(_Envelope).decode
_encode = msgspec.json.Encoder().encode


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding (DSSE protocol.md, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def pack(payload_type: str, payload: bytes, signatures: Iterable[tuple[KeyId, bytes]]) -> bytes:
    """Return the envelope's JSON for a payload that was signed over `pae(payload_type, payload)`."""
    return _encode(_Envelope(payload_type, payload, [_Signature(k, s) for k, s in signatures]))


def unpack(
    data: bytes,
    allowed: frozenset[Purpose],
    keys: Mapping[KeyId, Ed25519PublicKey],
    threshold: int = 1,
) -> tuple[Purpose, bytes, frozenset[KeyId]]:
    """Verify an envelope: returns its purpose, the exact signed bytes, and whose valid signatures it bears.

    Cheap checks come first. The threshold counts unique keys, not key ids and not signatures.
    Raises RefusalError: TOO_LARGE, NOT_AN_ENVELOPE, WRONG_TYPE, NOT_CANONICAL, UNKNOWN_KEY or BAD_SIGNATURE.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise RefusalError(Refusal.TOO_LARGE, f"{len(data)} bytes, at most {MAX_ENVELOPE_BYTES}")
    try:
        envelope = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(Refusal.NOT_AN_ENVELOPE, str(error)[:200]) from None
    if envelope.payloadType not in allowed:
        raise RefusalError(Refusal.WRONG_TYPE, envelope.payloadType[:100])
    if _encode(envelope) != data:
        raise RefusalError(Refusal.NOT_CANONICAL, "the envelope")
    known = [(KeyId(s.keyid), s.sig) for s in envelope.signatures if s.keyid in keys]
    if not known:
        raise RefusalError(Refusal.UNKNOWN_KEY)
    signed = pae(envelope.payloadType, envelope.payload)
    valid = frozenset(key_id for key_id, sig in known if _is_valid(keys[key_id], sig, signed))
    if len({keys[key_id].public_bytes_raw() for key_id in valid}) < threshold:
        raise RefusalError(Refusal.BAD_SIGNATURE)
    return Purpose(envelope.payloadType), envelope.payload, valid


def _is_valid(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
