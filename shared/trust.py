"""Whom to believe: bytes go in, trusted messages or a named refusal come out.

    seal_commands / seal_answer / seal_report     header and items → payload → signature → envelope
    open_command / open_answer / open_report      envelope → keys in that role → strict decode → context → trusted

What comes out is a `Trusted…` struct, and only this module makes those, so no code can hold unverified data by
accident. The order of the checks is the specification's: size, shape, type, key, signature, strict decode,
canonical bytes, then what the header says of federation, audience, incarnation and time. No I/O, no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.envelope import Refusal, RefusalError, pack, pae, unpack
from shared.ids import KeyId, sha256
from shared.keys import key_id
from shared.messages import (
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    MAX_PAYLOAD_BYTES,
    Ack,
    AnswerHeader,
    Command,
    CommandHeader,
    Event,
    Heartbeat,
    Hello,
    Kill,
    LogChunk,
    Message,
    Purpose,
    Reply,
    SpokeHeader,
    Welcome,
)
from shared.signers import Signer

MAX_WINDOW_MS: Final = 10 * 60_000
SKEW_MS: Final = 30_000

Report = Hello | Heartbeat | Event | Reply | LogChunk
Answer = Ack | Welcome

_ITEM_TYPES: Final[Mapping[Purpose, type[Report | Answer]]] = {
    Purpose.ACK: Ack,
    Purpose.WELCOME: Welcome,
    Purpose.HELLO: Hello,
    Purpose.HEARTBEAT: Heartbeat,
    Purpose.EVENT: Event,
    Purpose.REPLY: Reply,
    Purpose.LOG: LogChunk,
}
PURPOSE_OF: Final[Mapping[type[Report | Answer], Purpose]] = {t: p for p, t in _ITEM_TYPES.items()}

# What a spoke says one at a time: several under one signature would leave open which of them holds.
_ALONE: Final = frozenset({Purpose.HELLO, Purpose.HEARTBEAT})

REQUESTS: Final = frozenset({Purpose.HELLO, Purpose.HEARTBEAT, Purpose.EVENT})
TO_READER: Final = frozenset({Purpose.REPLY, Purpose.LOG})

_H = TypeVar("_H", bound=Message)
_T = TypeVar("_T")


class _Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: msgspec.Raw
    items: list[msgspec.Raw]


_encode = msgspec.json.Encoder().encode
_decode_payload = msgspec.json.Decoder(_Payload).decode
_decode_command = msgspec.json.Decoder(Command).decode
_decoders: Final = {
    purpose: msgspec.json.Decoder(kind).decode for purpose, kind in _ITEM_TYPES.items()
}


@dataclass(frozen=True, slots=True)
class TrustedItem(Generic[_T]):
    """One item, its exact signed bytes, and their SHA-256."""

    item: _T
    raw: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class TrustedCommands:
    """What the hub certainly said to this spoke, now."""

    header: CommandHeader
    items: tuple[TrustedItem[Command], ...]


@dataclass(frozen=True, slots=True)
class TrustedAnswer:
    """What the hub certainly answered to one request of this spoke."""

    header: AnswerHeader
    item: Answer


@dataclass(frozen=True, slots=True)
class TrustedReport:
    """What this spoke certainly said; `sha256` is of the whole envelope, for the answer's `re`."""

    purpose: Purpose
    header: SpokeHeader
    items: tuple[Report, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class HubTrust:
    """What a spoke knows when it judges what claims to come from its hub."""

    federation: str
    hub: str
    spoke: str
    incarnation: int
    keys: Mapping[KeyId, Ed25519PublicKey]


@dataclass(frozen=True, slots=True)
class SpokeTrust:
    """What the hub knows of one spoke when it judges what claims to come from there."""

    federation: str
    spoke: str
    keys: Mapping[KeyId, Ed25519PublicKey]


def federation_of(hub_key: Ed25519PublicKey) -> str:
    """Return the federation's id: until there is a trust root, SHA-256 of the pinned hub key."""
    return key_id(hub_key)


# --- the hub's side ----------------------------------------------------------------------------------


def encode_item(item: Command) -> bytes:
    """Return an item's canonical bytes: what the outbox keeps, and what is signed at each sending.

    Raises ValueError for an item that is too large for any envelope.
    """
    return _fitting(_encode(item))


def seal_commands(header: CommandHeader, items: Sequence[bytes], signer: Signer) -> bytes:
    """Return the envelope for items that `encode_item` made; see `batches` for how many fit."""
    return _seal(Purpose.COMMAND, header, items, signer)


def seal_answer(header: AnswerHeader, item: Answer, signer: Signer) -> bytes:
    """Return the envelope that answers one request."""
    return _seal(PURPOSE_OF[type(item)], header, [_encode(item)], signer)


def open_report(data: bytes, allowed: frozenset[Purpose], trust: SpokeTrust) -> TrustedReport:
    """Verify what claims to come from a spoke; raises RefusalError."""
    purpose, payload, _ = unpack(data, allowed, trust.keys)
    header, raw_items = _open_payload(payload, SpokeHeader)
    if header.federation != trust.federation:
        raise RefusalError(Refusal.WRONG_FEDERATION)
    if header.iss != trust.spoke:
        raise RefusalError(Refusal.WRONG_ISSUER, header.iss)
    decode = _decoders[purpose]
    if purpose in _ALONE and len(raw_items) != 1:
        raise RefusalError(Refusal.MALFORMED, "a hello or a heartbeat comes alone")
    items = tuple(_strict(decode, raw) for raw in raw_items)
    return TrustedReport(purpose, header, items, sha256(data))  # pyright: ignore[reportArgumentType] - purpose decides


# --- the spoke's side --------------------------------------------------------------------------------


def seal_report(header: SpokeHeader, items: Sequence[Report], signer: Signer) -> bytes:
    """Return the envelope of items of one kind: 1 to 256, of at most 64 KiB each, or ValueError."""
    raws = [_fitting(_encode(item)) for item in items]
    return _seal(PURPOSE_OF[type(items[0])], header, raws, signer)


def open_command(data: bytes, trust: HubTrust, now_ms: int, newest_ms: int) -> TrustedCommands:
    """Verify what claims to be a command; raises RefusalError.

    `newest_ms` is the newest signed time this spoke has seen: a clock that stands more than 30 s behind it
    cannot judge expiry, so only kills pass. A kill-only envelope is valid at any time and in any incarnation,
    since a replay only repeats an order once given.
    """
    _, payload, _ = unpack(data, frozenset({Purpose.COMMAND}), trust.keys)
    header, raw_items = _open_payload(payload, CommandHeader)
    if header.federation != trust.federation:
        raise RefusalError(Refusal.WRONG_FEDERATION)
    if header.iss != trust.hub:
        raise RefusalError(Refusal.WRONG_ISSUER, header.iss)
    if header.aud != trust.spoke:
        raise RefusalError(Refusal.WRONG_AUDIENCE, header.aud)
    items = tuple(
        TrustedItem(_strict(_decode_command, raw), raw, sha256(raw)) for raw in raw_items
    )
    kills = sum(isinstance(trusted.item, Kill) for trusted in items)
    if 0 < kills < len(items):
        raise RefusalError(Refusal.MIXED_KILL)
    if not kills:
        _check_time(header, now_ms, newest_ms)
        if header.inc != trust.incarnation:
            raise RefusalError(
                Refusal.WRONG_INCARNATION, f"{header.inc}, here {trust.incarnation}"
            )
    return TrustedCommands(header, items)


def open_answer(data: bytes, request: bytes, trust: HubTrust) -> TrustedAnswer:
    """Verify the answer to `request`; raises RefusalError. Bound by the request's hash, so it needs no window."""
    purpose, payload, _ = unpack(data, frozenset({Purpose.ACK, Purpose.WELCOME}), trust.keys)
    header, raw_items = _open_payload(payload, AnswerHeader)
    if header.federation != trust.federation:
        raise RefusalError(Refusal.WRONG_FEDERATION)
    if header.iss != trust.hub:
        raise RefusalError(Refusal.WRONG_ISSUER, header.iss)
    if header.aud != trust.spoke:
        raise RefusalError(Refusal.WRONG_AUDIENCE, header.aud)
    if header.re != sha256(request):
        raise RefusalError(Refusal.WRONG_ANSWER, "to another request")
    if len(raw_items) != 1:
        raise RefusalError(Refusal.MALFORMED, "an answer has one item")
    item = _strict(_decoders[purpose], raw_items[0])
    return TrustedAnswer(header, item)  # pyright: ignore[reportArgumentType] - `allowed` holds answers only


# --- what both share ---------------------------------------------------------------------------------


def batches(items: Sequence[bytes]) -> list[list[bytes]]:
    """Cut items, in their order, into groups that fit one envelope each."""
    groups: list[list[bytes]] = []
    size = MAX_PAYLOAD_BYTES + 1
    for item in items:
        if size + len(item) + 1 > MAX_PAYLOAD_BYTES or len(groups[-1]) >= MAX_ITEMS:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += len(item) + 1
    return groups


def _fitting(raw: bytes) -> bytes:
    if len(raw) > MAX_ITEM_BYTES:
        raise ValueError(f"an item of {len(raw)} bytes, at most {MAX_ITEM_BYTES} fit")
    return raw


def _seal(purpose: Purpose, header: Message, items: Sequence[bytes], signer: Signer) -> bytes:
    if not 1 <= len(items) <= MAX_ITEMS:
        raise ValueError(f"{len(items)} items, 1 to {MAX_ITEMS} go into one envelope")
    payload = _join(_encode(header), items)
    return pack(purpose, payload, [(signer.key_id, signer.sign(pae(purpose, payload)))])


def _join(header: bytes, items: Sequence[bytes]) -> bytes:
    return b'{"header":%s,"items":[%s]}' % (header, b",".join(items))


def _open_payload(payload: bytes, header_type: type[_H]) -> tuple[_H, list[bytes]]:
    try:
        found = _decode_payload(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(Refusal.MALFORMED, str(error)[:200]) from None
    header_raw, items = bytes(found.header), [bytes(item) for item in found.items]
    if not 1 <= len(items) <= MAX_ITEMS:
        raise RefusalError(Refusal.MALFORMED, f"{len(items)} items, 1 to {MAX_ITEMS} are allowed")
    if any(len(item) > MAX_ITEM_BYTES for item in items):
        raise RefusalError(Refusal.TOO_LARGE, f"an item of over {MAX_ITEM_BYTES} bytes")
    if _join(header_raw, items) != payload:
        raise RefusalError(Refusal.NOT_CANONICAL, "the payload")
    return _strict(msgspec.json.Decoder(header_type).decode, header_raw), items


def _strict(decode: Callable[[bytes], _T], raw: bytes) -> _T:
    """Decode, and hold the sender to the one encoding: msgspec takes the last of duplicate keys."""
    try:
        value = decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(Refusal.MALFORMED, str(error)[:200]) from None
    if _encode(value) != raw:
        raise RefusalError(Refusal.NOT_CANONICAL)
    return value


def _check_time(header: CommandHeader, now_ms: int, newest_ms: int) -> None:
    if header.exp - header.iat > MAX_WINDOW_MS:
        raise RefusalError(Refusal.WINDOW_TOO_LONG)
    if now_ms < newest_ms - SKEW_MS:
        raise RefusalError(
            Refusal.SPOKE_CLOCK, f"{newest_ms - now_ms} ms behind the newest signed time"
        )
    if now_ms < header.iat - SKEW_MS:
        raise RefusalError(Refusal.FROM_THE_FUTURE, f"{header.iat - now_ms} ms ahead")
    if now_ms > header.exp:
        raise RefusalError(Refusal.EXPIRED, f"{now_ms - header.exp} ms ago")
