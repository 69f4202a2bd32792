"""One row per attack on what comes off the wire: each is refused by its name, and nothing else is raised.

The tables are the specification turned around: for every rule of "Envelope" and "Header and items" in the protocol
there is a row that breaks this rule and no other. Attacks that are validly signed come from a sender that lies or is
faulty; they must be refused all the same. At the end every byte of an envelope is altered, and thousands of mutants
are thrown at the three doors: none may be accepted, and none may raise anything but a RefusalError.
"""

import base64
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.envelope import Refusal, RefusalError, pack, pae
from shared.ids import sha256
from shared.keys import public_key
from shared.messages import (
    MAX_ENVELOPE_BYTES,
    MAX_ITEM_BYTES,
    MAX_ITEMS,
    Exit,
    ExitKind,
    Purpose,
)
from shared.trust import (
    MAX_WINDOW_MS,
    REQUESTS,
    SKEW_MS,
    TO_READER,
    open_answer,
    open_command,
    open_report,
    seal_answer,
    seal_report,
)
from tests.helpers import builders as a

R = Refusal
Change = Callable[[dict[str, Any]], object]

REQUEST = seal_report(a.spoke_header(), [a.event()], a.ZURICH)
OTHER_REQUEST = seal_report(a.spoke_header(), [a.event(seq=2)], a.ZURICH)


# --- the three doors ---------------------------------------------------------------------------------


def at_the_spoke(data: bytes, *, now: int = a.NOW, newest: int = a.NOW, **trust: Any) -> object:
    return open_command(data, a.hub_trust(**trust), now, newest)


def at_the_hub(data: bytes, *, allowed: frozenset[Purpose] = REQUESTS) -> object:
    return open_report(data, allowed, a.spoke_trust())


def as_an_answer(data: bytes) -> object:
    return open_answer(data, REQUEST, a.hub_trust())


def refused(door: Callable[[], object]) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        door()
    return caught.value.refusal


def rows(table: list[tuple[str, Any, Refusal]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("attack", "expected"), [pytest.param(make, no, id=name) for name, make, no in table]
    )


# --- tools of the attacker ---------------------------------------------------------------------------


def honest(*items: Any, **header: Any) -> bytes:
    return a.commands(*(items or (a.spawn(),)), **header)


def answered(item: Any = None, by: Any = a.HUB, **header: Any) -> bytes:
    return seal_answer(a.answer_header(**{"re": sha256(REQUEST)} | header), item or a.ack(), by)


def edited(data: bytes, change: Change) -> bytes:
    """An honest envelope with something changed in its JSON."""
    envelope = a.envelope_dict(data)
    change(envelope)
    return a.envelope_bytes(envelope)


def lied(change: Change, **header: Any) -> bytes:
    """A validly signed command whose payload is not what it should be."""
    payload = json.loads(a.payload_in(honest(**header)))
    change(payload)
    return a.sign(a.envelope_bytes(payload))


def in_item(**fields: Any) -> Callable[[], bytes]:
    return lambda: lied(lambda payload: payload["items"][0].update(fields))


def in_spec(**fields: Any) -> Callable[[], bytes]:
    return lambda: lied(lambda payload: payload["items"][0]["spec"].update(fields))


def in_header(**fields: Any) -> Callable[[], bytes]:
    return lambda: lied(lambda payload: payload["header"].update(fields))


def without(*path: str | int) -> Callable[[], bytes]:
    def change(payload: Any) -> None:
        for key in path[:-1]:
            payload = payload[key]
        del payload[path[-1]]

    return lambda: lied(change)


def raw(*parts: bytes) -> Callable[[], bytes]:
    """A validly signed command with these bytes for its one item, or for header and items."""
    header = msgspec.json.encode(a.command_header()) if len(parts) == 1 else parts[0]
    return lambda: a.sign(a.payload_of(header, parts[-1:]))


def spliced(find: bytes, put: bytes, *, item: Any = None) -> Callable[[], bytes]:
    """A validly signed command in whose payload some bytes were replaced."""

    def make() -> bytes:
        payload = a.payload_in(honest(item or a.spawn()))
        assert payload.count(find) == 1
        return a.sign(payload.replace(find, put))

    return make


def loosely_encoded(data: bytes) -> str:
    """The payload's base64 with a last letter that decodes to the same bytes: one of the unused bits is set."""
    text: str = a.envelope_dict(data)["payload"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    kept = text.rstrip("=")
    loose = kept[:-1] + alphabet[alphabet.index(kept[-1]) + 1] + "=" * (len(text) - len(kept))
    assert base64.b64decode(loose) == base64.b64decode(text)
    return loose


def padded() -> bytes:
    """An honest command whose payload needs padding in base64."""
    for n in range(3):
        data = honest(a.spawn(actor="x" * n))
        if a.envelope_dict(data)["payload"].endswith("="):
            return data
    raise AssertionError


SPAWN_RAW = msgspec.json.encode(a.spawn())
DEEP = 30_000

# --- the envelope ------------------------------------------------------------------------------------

ENVELOPES: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("nothing at all", lambda: b"", R.NOT_AN_ENVELOPE),
    ("not json", lambda: b"spawn!", R.NOT_AN_ENVELOPE),
    ("another shape", lambda: b"[]", R.NOT_AN_ENVELOPE),
    ("null", lambda: b"null", R.NOT_AN_ENVELOPE),
    ("cut off", lambda: honest()[:-1], R.NOT_AN_ENVELOPE),
    ("something after it", lambda: honest() + b"{}", R.NOT_AN_ENVELOPE),
    ("a byte order mark", lambda: b"\xef\xbb\xbf" + honest(), R.NOT_AN_ENVELOPE),
    ("utf-16", lambda: honest().decode().encode("utf-16"), R.NOT_AN_ENVELOPE),
    ("too large", lambda: b" " * (MAX_ENVELOPE_BYTES + 1), R.TOO_LARGE),
    ("nesting without end", lambda: b"[" * 200_000, R.NOT_AN_ENVELOPE),
    ("deep payload", lambda: b'{"payload":' + b"[" * 200_000, R.NOT_AN_ENVELOPE),
    ("a bare payload", lambda: a.payload_in(honest()), R.NOT_AN_ENVELOPE),
    ("unknown field", lambda: edited(honest(), lambda e: e.update(alg="none")), R.NOT_AN_ENVELOPE),
    (
        "unknown field in a signature",
        lambda: edited(honest(), lambda e: e["signatures"][0].update(alg="none")),
        R.NOT_AN_ENVELOPE,
    ),
    ("no payload", lambda: edited(honest(), lambda e: e.pop("payload")), R.NOT_AN_ENVELOPE),
    ("no type", lambda: edited(honest(), lambda e: e.pop("payloadType")), R.NOT_AN_ENVELOPE),
    (
        "no list of signatures",
        lambda: edited(honest(), lambda e: e.pop("signatures")),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "payload not base64",
        lambda: edited(honest(), lambda e: e.update(payload="?")),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "signature not base64",
        lambda: edited(honest(), lambda e: e["signatures"][0].update(sig="?")),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "payload a number",
        lambda: edited(honest(), lambda e: e.update(payload=1)),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "key id a number",
        lambda: edited(honest(), lambda e: e["signatures"][0].update(keyid=1)),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "a thousand signatures",
        lambda: edited(honest(), lambda e: e.update(signatures=e["signatures"] * 1000)),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "an invalid letter in a string",
        lambda: honest().replace(b'"payloadType":"app', b'"payloadType":"\xff\xfe'),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "half a surrogate pair",
        lambda: honest().replace(b'"keyid":"', b'"keyid":"\\ud800'),
        R.NOT_AN_ENVELOPE,
    ),
    ("whitespace in front", lambda: b" " + honest(), R.NOT_CANONICAL),
    ("whitespace behind", lambda: honest() + b"\n", R.NOT_CANONICAL),
    ("whitespace within", lambda: honest().replace(b'":', b'": ', 1), R.NOT_CANONICAL),
    (
        "keys in another order",
        lambda: a.envelope_bytes(dict(sorted(a.envelope_dict(honest()).items()))),
        R.NOT_CANONICAL,
    ),
    (
        "a payload twice, the first one another",
        lambda: honest().replace(b'"payload":', b'"payload":"e30=","payload":'),
        R.NOT_CANONICAL,
    ),
    (
        "signatures twice",
        lambda: honest().replace(b'"signatures":', b'"signatures":[],"signatures":'),
        R.NOT_CANONICAL,
    ),
    (
        "an escaped letter",
        lambda: honest().replace(b'"payloadType":"a', b'"payloadType":"\\u0061'),
        R.NOT_CANONICAL,
    ),
    (
        "base64 with stray bits",
        lambda: edited(data := padded(), lambda e: e.update(payload=loosely_encoded(data))),
        R.NOT_CANONICAL,
    ),
    (
        "base64 of the url kind",
        lambda: edited(honest(), lambda e: e.update(payload=e["payload"][:-4] + "-_-_")),
        R.NOT_AN_ENVELOPE,
    ),
    (
        "base64 without padding",
        lambda: edited(padded(), lambda e: e.update(payload=e["payload"].rstrip("="))),
        R.NOT_AN_ENVELOPE,
    ),
]


@rows(ENVELOPES)
@pytest.mark.parametrize("door", [at_the_spoke, at_the_hub, as_an_answer])
def test_what_is_no_proper_envelope_is_refused_at_every_door(
    door: Callable[[bytes], object], attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    got = refused(lambda: door(data))
    # A proper type for one door is the wrong one for another, and the type is looked at first.
    assert got in ({expected} if door is at_the_spoke else {expected, R.WRONG_TYPE})


# --- who signed it, and as what ----------------------------------------------------------------------


def with_key_id_of(keyid: str, by: Any) -> bytes:
    return edited(
        a.sign(a.payload_in(honest()), by=by), lambda e: e["signatures"][0].update(keyid=keyid)
    )


SIGNERS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("unsigned", lambda: edited(honest(), lambda e: e.update(signatures=[])), R.UNKNOWN_KEY),
    ("a stranger's key", lambda: a.sign(a.payload_in(honest()), by=a.STRANGER), R.UNKNOWN_KEY),
    ("a spoke's key", lambda: a.sign(a.payload_in(honest()), by=a.ZURICH), R.UNKNOWN_KEY),
    ("another spoke's key", lambda: a.sign(a.payload_in(honest()), by=a.GENEVA), R.UNKNOWN_KEY),
    ("a stranger under the hub's key id", lambda: with_key_id_of(a.HUB.key_id, a.STRANGER), R.BAD_SIGNATURE),
    ("the hub under a stranger's key id", lambda: with_key_id_of(a.STRANGER.key_id, a.HUB), R.UNKNOWN_KEY),
    ("no key id", lambda: with_key_id_of("", a.HUB), R.UNKNOWN_KEY),
    ("an empty signature", lambda: edited(honest(), lambda e: e["signatures"][0].update(sig="")), R.BAD_SIGNATURE),
    (
        "all zeros for a signature",
        lambda: edited(honest(), lambda e: e["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode())),
        R.BAD_SIGNATURE,
    ),
    (
        "the signature of another command",
        lambda: edited(honest(), lambda e: e.update(signatures=a.envelope_dict(honest(a.kill()))["signatures"])),
        R.BAD_SIGNATURE,
    ),
    (
        "the payload of another command",
        lambda: edited(honest(), lambda e: e.update(payload=a.envelope_dict(honest(a.spawn(gen=2)))["payload"])),
        R.BAD_SIGNATURE,
    ),
    (
        "a signature without the type",
        lambda: pack(Purpose.COMMAND, b"{}", [(a.HUB.key_id, a.HUB.sign(b"{}"))]),
        R.BAD_SIGNATURE,
    ),
    ("an answer as a command", answered, R.WRONG_TYPE),
    ("an event as a command", lambda: REQUEST, R.WRONG_TYPE),
    (
        "a relabelled answer",
        lambda: answered().replace(Purpose.ACK.encode(), Purpose.COMMAND.encode()),
        R.BAD_SIGNATURE,
    ),
    ("a type nobody knows", lambda: a.sign(a.payload_in(honest()), purpose="text/plain"), R.WRONG_TYPE),
    ("the type of version 2", lambda: a.sign(a.payload_in(honest()), purpose=Purpose.COMMAND.replace("v1", "v2")), R.WRONG_TYPE),
    ("the type in capitals", lambda: a.sign(a.payload_in(honest()), purpose=Purpose.COMMAND.upper()), R.WRONG_TYPE),
    ("no type at all", lambda: a.sign(a.payload_in(honest()), purpose=""), R.WRONG_TYPE),
]  # fmt: skip


@rows(SIGNERS)
def test_a_command_that_the_hub_did_not_sign_as_a_command_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: at_the_spoke(data)) is expected


def small_order_keys() -> list[bytes]:
    p = 2**255 - 19
    eighth = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    values = [0, 1, p - 1, p, p + 1, eighth, p - eighth]
    return [(y | sign << 255).to_bytes(32, "little") for y in values for sign in (0, 1)]


@pytest.mark.parametrize("encoded", small_order_keys(), ids=lambda encoded: encoded.hex()[:16])
def test_a_key_under_which_one_signature_fits_everything_never_becomes_a_key(encoded: bytes):
    with pytest.raises(ValueError, match="not a usable"):
        public_key(encoded)


def test_such_a_key_would_have_let_a_forgery_in():
    weak = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    forged = pack(
        Purpose.COMMAND,
        a.payload_in(honest()),
        [(a.HUB.key_id, (1).to_bytes(32, "little") + bytes(32))],
    )
    assert at_the_spoke(forged, keys={a.HUB.key_id: weak})
    assert refused(lambda: at_the_spoke(forged)) is R.BAD_SIGNATURE


# --- the payload: signed by the hub, and wrong all the same ------------------------------------------

PAYLOADS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("no json", lambda: a.sign(b"spawn!"), R.MALFORMED),
    ("empty", lambda: a.sign(b""), R.MALFORMED),
    ("null", lambda: a.sign(b"null"), R.MALFORMED),
    ("a list", lambda: a.sign(b"[]"), R.MALFORMED),
    ("no header", without("header"), R.MALFORMED),
    ("no list of items", without("items"), R.MALFORMED),
    ("unknown field", lambda: lied(lambda p: p.update(more=1)), R.MALFORMED),
    ("items no list", lambda: lied(lambda p: p.update(items={})), R.MALFORMED),
    ("no items", lambda: lied(lambda p: p.update(items=[])), R.MALFORMED),
    ("too many items", lambda: a.sign(a.payload_of(a.command_header(), [b"{}"] * (MAX_ITEMS + 1))), R.MALFORMED),
    ("a null item", raw(b"null"), R.MALFORMED),
    ("an item that is a string", raw(b'"kill"'), R.MALFORMED),
    ("a header that is a list", raw(b"[]", SPAWN_RAW), R.MALFORMED),
    ("a header that is null", raw(b"null", SPAWN_RAW), R.MALFORMED),
    ("a header of an answer", lambda: a.sign(a.payload_of(a.answer_header(), [SPAWN_RAW])), R.MALFORMED),
    ("too large an item", raw(b'"' + b"x" * MAX_ITEM_BYTES + b'"'), R.TOO_LARGE),
    ("deep nesting for an item", raw(b"[" * DEEP + b"]" * DEEP), R.MALFORMED),
    ("deep objects for an item", raw(b'{"a":' * 10_000 + b"1" + b"}" * 10_000), R.MALFORMED),
    ("deep nesting for the header", raw(b"[" * DEEP + b"]" * DEEP, SPAWN_RAW), R.MALFORMED),
    ("deep nesting for the payload", lambda: a.sign(b"[" * DEEP * 2 + b"]" * DEEP * 2), R.MALFORMED),
    ("deep nesting in a spec", in_spec(env={"A": json.loads("[" * 900 + "]" * 900)}), R.MALFORMED),
    ("no utf-8", spliced(b'"actor":"tester"', b'"actor":"\xff"'), R.MALFORMED),
    ("overlong utf-8", spliced(b'"actor":"tester"', b'"actor":"\xc0\x80"'), R.MALFORMED),
    ("a surrogate in utf-8", spliced(b'"actor":"tester"', b'"actor":"\xed\xa0\x80"'), R.MALFORMED),
    ("half a surrogate pair", spliced(b'"actor":"tester"', b'"actor":"\\ud800"'), R.MALFORMED),
    ("a bare control character", spliced(b'"actor":"tester"', b'"actor":"\x01"'), R.MALFORMED),
    ("NaN", spliced(b'"gen":1', b'"gen":NaN'), R.MALFORMED),
    ("infinity", spliced(b'"gen":1', b'"gen":1e999'), R.MALFORMED),
    ("a number of 5,000 digits", spliced(b'"gen":1', b'"gen":' + b"9" * 5_000), R.MALFORMED),
    ("2 to the 53", in_item(gen=2**53), R.MALFORMED),
    ("2 to the 64", in_item(gen=2**64), R.MALFORMED),
    ("a float", spliced(b'"gen":1', b'"gen":1.0'), R.MALFORMED),
    ("an exponent", spliced(b'"gen":1', b'"gen":1e0'), R.MALFORMED),
    ("a leading zero", spliced(b'"gen":1', b'"gen":01'), R.MALFORMED),
    ("minus zero", spliced(b'"hub_epoch":1', b'"hub_epoch":-0'), R.NOT_CANONICAL),
    ("a single quote", spliced(b'"gen":1', b"'gen':1"), R.MALFORMED),
    ("a comment", spliced(b'"gen":1', b'/**/"gen":1'), R.MALFORMED),
    ("a trailing comma", spliced(b'"evt_ack":0}', b'"evt_ack":0,}'), R.MALFORMED),
    # msgspec takes the last of two keys; what a log or another reader shows may be the first.
    ("a header twice", spliced(b'{"header":', b'{"header":{},"header":'), R.NOT_CANONICAL),
    ("items twice", spliced(b'"items":[', b'"items":[],"items":['), R.NOT_CANONICAL),
    ("a field of the header twice", spliced(b'"aud":"zurich"', b'"aud":"geneva","aud":"zurich"'), R.NOT_CANONICAL),
    ("a field of an item twice", spliced(b'"gen":1', b'"gen":2,"gen":1'), R.NOT_CANONICAL),
    ("the operation twice", spliced(b'"op":"spawn"', b'"op":"spawn","op":"spawn"'), R.NOT_CANONICAL),
    ("a field of the spec twice", spliced(b'"priority":5', b'"priority":1,"priority":5'), R.NOT_CANONICAL),
    ("a variable twice", spliced(b'"env":{}', b'"env":{"A":"1","A":"2"}'), R.NOT_CANONICAL),
    ("whitespace around the payload", lambda: a.sign(b" " + a.payload_in(honest())), R.NOT_CANONICAL),
    ("whitespace behind the payload", lambda: a.sign(a.payload_in(honest()) + b"\n"), R.NOT_CANONICAL),
    ("whitespace in the header", spliced(b'"iss":', b'"iss": '), R.NOT_CANONICAL),
    ("whitespace in an item", spliced(b'"gen":1', b'"gen": 1'), R.NOT_CANONICAL),
    ("whitespace between items", spliced(b'"items":[', b'"items":[ '), R.NOT_CANONICAL),
    ("an escaped letter", spliced(b'"actor":"tester"', b'"actor":"\\u0074ester"'), R.NOT_CANONICAL),
    ("header and items swapped", lambda: lied(lambda p: p.update(header=p.pop("header"))), R.NOT_CANONICAL),
    ("fields of an item in another order", lambda: lied(lambda p: p["items"][0].update(gen=p["items"][0].pop("gen"))), R.NOT_CANONICAL),
]  # fmt: skip

ITEMS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("unknown operation", in_item(op="reboot"), R.MALFORMED),
    ("operation in capitals", in_item(op="SPAWN"), R.MALFORMED),
    ("operation a number", in_item(op=1), R.MALFORMED),
    ("no operation", without("items", 0, "op"), R.MALFORMED),
    ("unknown field in an item", in_item(sudo=True), R.MALFORMED),
    ("unknown field in the spec", in_spec(privileged=True), R.MALFORMED),
    ("unknown field in the limits", in_spec(limits={"cpu": 1}), R.MALFORMED),
    ("a default left out", in_spec(limits={"cpu_milli": 1}), R.NOT_CANONICAL),
    *[(f"no {name}", without("items", 0, name), R.MALFORMED) for name in ("id", "agent", "gen", "spec", "actor", "tenant")],
    ("no priority", without("items", 0, "spec", "priority"), R.MALFORMED),
    ("an id of another version", in_item(id="00000000-0000-4000-8000-000000000000"), R.MALFORMED),
    ("an id in capitals", in_item(id=a.new_id().upper()), R.MALFORMED),
    ("an id with a newline", in_item(id=a.new_id() + "\n"), R.MALFORMED),
    ("an agent that is a path", in_item(agent="../../etc/passwd"), R.MALFORMED),
    ("an agent that is null", in_item(agent=None), R.MALFORMED),
    ("a tenant with a wildcard", in_item(tenant="*"), R.MALFORMED),
    ("a tenant with a colon", in_item(tenant="a:b"), R.MALFORMED),
    ("generation 0", in_item(gen=0), R.MALFORMED),
    ("generation -1", in_item(gen=-1), R.MALFORMED),
    ("a generation in quotes", in_item(gen="1"), R.MALFORMED),
    ("a generation that is true", in_item(gen=True), R.MALFORMED),
    ("priority 0", in_spec(priority=0), R.MALFORMED),
    ("priority 11", in_spec(priority=11), R.MALFORMED),
    ("negative retries", in_spec(max_retries=-1), R.MALFORMED),
    ("retries without end", in_spec(max_retries=101), R.MALFORMED),
    ("a negative grace", in_spec(grace_ms=-1), R.MALFORMED),
    ("a time-out of 0", in_spec(timeout_ms=0), R.MALFORMED),
    ("a deadline in the year 10000", in_spec(deadline_ms=253_402_300_800_000), R.MALFORMED),
    ("no memory", in_spec(limits=msgspec.to_builtins(a.spec().limits) | {"memory_bytes": 0}), R.MALFORMED),
    ("an unknown sandbox", in_spec(sandbox="none"), R.MALFORMED),
    ("an unknown network", in_spec(network="all"), R.MALFORMED),
    ("a mount that climbs", in_spec(mounts=["../etc"]), R.MALFORMED),
    ("a NUL in an argument", in_spec(command=["a\x00b"]), R.MALFORMED),
    ("an = in a variable's name", in_spec(env={"LD_PRELOAD=x": "y"}), R.MALFORMED),
    ("a command that is a string", in_spec(command="rm -rf /"), R.MALFORMED),
    ("a traceparent without end", in_item(trace="0" * 56), R.MALFORMED),
    ("a wanted state without a revision", lambda: a.sign(a.payload_of(a.command_header(), [a.envelope_bytes({k: v for k, v in msgspec.to_builtins(a.pause()).items() if k != "rev"})])), R.MALFORMED),
    ("an event as a command", lambda: a.sign(a.payload_of(a.command_header(), [a.event()])), R.MALFORMED),
    ("one bad item among good ones", lambda: a.sign(a.payload_of(a.command_header(), [a.spawn(), b"{}", a.spawn()])), R.MALFORMED),
    ("a kill among spawns", lambda: honest(a.spawn(), a.kill()), R.MIXED_KILL),
    ("a spawn among kills", lambda: honest(a.kill(), a.kill(), a.spawn()), R.MIXED_KILL),
    ("a status hidden among kills", lambda: honest(a.kill(), a.status()), R.MIXED_KILL),
]  # fmt: skip

HEADERS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    *[(f"no {name}", without("header", name), R.MALFORMED) for name in a.command_header().__struct_fields__],
    ("unknown field", in_header(alg="none"), R.MALFORMED),
    ("two audiences", in_header(aud=["zurich", "geneva"]), R.MALFORMED),
    ("any audience", in_header(aud="*"), R.MALFORMED),
    ("no audience", in_header(aud=""), R.MALFORMED),
    ("a time in quotes", in_header(iat=str(a.NOW)), R.MALFORMED),
    ("a time in seconds and a fraction", in_header(iat=a.NOW / 1000 + 0.5), R.MALFORMED),
    ("a negative time", in_header(iat=-1), R.MALFORMED),
    ("never expires", in_header(exp=None), R.MALFORMED),
    ("a negative incarnation", in_header(inc=-1), R.MALFORMED),
    ("another federation", in_header(federation=a.ZEROS), R.WRONG_FEDERATION),
    ("another hub", in_header(iss="hub-2"), R.WRONG_ISSUER),
    ("another spoke", in_header(aud="geneva"), R.WRONG_AUDIENCE),
    ("an older incarnation", in_header(inc=0), R.WRONG_INCARNATION),
    ("a later incarnation", in_header(inc=2), R.WRONG_INCARNATION),
    ("expired", in_header(iat=a.NOW - a.MINUTE, exp=a.NOW - 1), R.EXPIRED),
    ("expired long ago", in_header(iat=0, exp=1), R.EXPIRED),
    ("from the future", in_header(iat=a.NOW + SKEW_MS + 1, exp=a.NOW + a.MINUTE), R.FROM_THE_FUTURE),
    ("a window too long", in_header(exp=a.NOW + MAX_WINDOW_MS + 1), R.WINDOW_TOO_LONG),
    ("a window of a year", in_header(iat=a.NOW - 10, exp=a.NOW + 365 * 86_400_000), R.WINDOW_TOO_LONG),
]  # fmt: skip


@rows(PAYLOADS)
def test_a_payload_that_has_a_second_reading_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: at_the_spoke(data)) is expected


@rows(ITEMS)
def test_an_item_that_is_not_exactly_a_command_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: at_the_spoke(data)) is expected


@rows(HEADERS)
def test_a_header_for_another_place_or_time_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: at_the_spoke(data)) is expected


# --- time, as the spoke's own clock has it ---------------------------------------------------------------


def test_a_command_that_was_kept_back_until_it_expired_is_refused():
    data = honest()
    assert refused(lambda: at_the_spoke(data, now=a.NOW + 5 * a.MINUTE + 1, newest=0)) is R.EXPIRED


def test_a_clock_that_was_set_back_opens_no_old_command():
    behind = a.NOW + SKEW_MS + 1
    assert refused(lambda: at_the_spoke(honest(), now=a.NOW, newest=behind)) is R.SPOKE_CLOCK


def test_kills_need_neither_clock_nor_incarnation_but_all_the_rest():
    late = {"now": a.NOW + 10**10, "newest": a.NOW + 10**11, "incarnation": 99}
    assert at_the_spoke(honest(a.kill()), **late)
    for change, expected in (
        ({"aud": "geneva"}, R.WRONG_AUDIENCE),
        ({"iss": "hub-2"}, R.WRONG_ISSUER),
        ({"federation": a.ZEROS}, R.WRONG_FEDERATION),
    ):
        data = honest(a.kill(), **change)
        assert refused(lambda data=data: at_the_spoke(data, **late)) is expected
    assert (
        refused(lambda: at_the_spoke(a.commands(a.kill(), by=a.STRANGER), **late)) is R.UNKNOWN_KEY
    )


# --- at the hub: what claims to come from a spoke -------------------------------------------------------


def report(*items: Any, by: Any = a.ZURICH, **header: Any) -> bytes:
    return seal_report(a.spoke_header(**header), items or (a.event(),), by)


def report_of(item: dict[str, Any] | bytes, purpose: Purpose = Purpose.EVENT) -> bytes:
    encoded = item if isinstance(item, bytes) else a.envelope_bytes(item)
    return a.sign(a.payload_of(a.spoke_header(), [encoded]), purpose=purpose, by=a.ZURICH)


def event_with(**fields: Any) -> Callable[[], bytes]:
    return lambda: report_of(msgspec.to_builtins(a.event()) | fields)


REPORTS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("unsigned", lambda: edited(report(), lambda e: e.update(signatures=[])), R.UNKNOWN_KEY),
    ("a stranger", lambda: report(by=a.STRANGER), R.UNKNOWN_KEY),
    ("another spoke in its own name", lambda: report(by=a.GENEVA, iss="geneva"), R.UNKNOWN_KEY),
    ("another spoke in this one's name", lambda: report(by=a.GENEVA), R.UNKNOWN_KEY),
    ("the hub's own key", lambda: report(by=a.HUB), R.UNKNOWN_KEY),
    ("this spoke in another's name", lambda: report(iss="geneva"), R.WRONG_ISSUER),
    ("another federation", lambda: report(federation=a.ZEROS), R.WRONG_FEDERATION),
    ("a command", lambda: a.sign(a.payload_in(honest()), by=a.ZURICH), R.WRONG_TYPE),
    ("a log chunk as a request", lambda: report(a.log_chunk()), R.WRONG_TYPE),
    ("a reply as a request", lambda: report(a.reply()), R.WRONG_TYPE),
    ("an event relabelled", lambda: report().replace(b".event.", b".hello."), R.BAD_SIGNATURE),
    ("an event signed as a hello", lambda: report_of(msgspec.json.encode(a.event()), Purpose.HELLO), R.MALFORMED),
    ("two hellos", lambda: report(a.hello(), a.hello()), R.MALFORMED),
    ("two heartbeats", lambda: report(a.heartbeat(), a.heartbeat(counter=2)), R.MALFORMED),
    ("a command's header", lambda: a.sign(a.payload_of(a.command_header(), [a.event()]), purpose=Purpose.EVENT, by=a.ZURICH), R.MALFORMED),
    ("no items", lambda: a.sign(a.payload_of(a.spoke_header(), []), purpose=Purpose.EVENT, by=a.ZURICH), R.MALFORMED),
    ("an unknown kind of event", event_with(kind="promoted"), R.MALFORMED),
    ("lost is not a spoke's word", event_with(kind="lost"), R.MALFORMED),
    ("seq 0", event_with(seq=0), R.MALFORMED),
    ("a negative fence", event_with(fence=-1), R.MALFORMED),
    ("a time in the year 10000", event_with(at=253_402_300_800_000), R.MALFORMED),
    ("a hash that is none", event_with(cmd_sha256="x" * 64), R.MALFORMED),
    ("a reason without end", event_with(reason="x" * 1025), R.MALFORMED),
    ("an exit code of 256", event_with(exit=msgspec.to_builtins(Exit(kind=ExitKind.EXITED)) | {"code": 256}), R.MALFORMED),
    ("signal 0", event_with(exit=msgspec.to_builtins(Exit(kind=ExitKind.SIGNALED)) | {"signal": 0}), R.MALFORMED),
    ("an unknown field", event_with(admin=True), R.MALFORMED),
    ("a field twice", lambda: report_of(msgspec.json.encode(a.event()).replace(b'"seq":1', b'"seq":9,"seq":1')), R.NOT_CANONICAL),
]  # fmt: skip


@rows(REPORTS)
def test_a_report_that_this_spoke_did_not_sign_as_such_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: at_the_hub(data)) is expected


@pytest.mark.parametrize(
    "item", [a.event(), a.hello(), a.heartbeat()], ids=lambda i: type(i).__name__
)
def test_what_is_for_any_hub_is_not_taken_by_a_reader(item: Any):
    assert refused(lambda: at_the_hub(report(item), allowed=TO_READER)) is R.WRONG_TYPE


def test_a_log_chunk_with_loose_base64_is_refused():
    chunk = msgspec.json.encode(a.log_chunk(data=b"A")).replace(b'"QQ=="', b'"QR=="')
    data = report_of(chunk, Purpose.LOG)
    assert refused(lambda: at_the_hub(data, allowed=TO_READER)) is R.NOT_CANONICAL


# --- at the spoke: what claims to be the hub's answer ---------------------------------------------------

ANSWERS: list[tuple[str, Callable[[], bytes], Refusal]] = [
    ("to another request", lambda: answered(re=sha256(OTHER_REQUEST)), R.WRONG_ANSWER),
    ("to no request", lambda: answered(re=a.ZEROS), R.WRONG_ANSWER),
    ("unsigned", lambda: edited(answered(), lambda e: e.update(signatures=[])), R.UNKNOWN_KEY),
    ("by a stranger", lambda: answered(by=a.STRANGER), R.UNKNOWN_KEY),
    ("by the spoke itself", lambda: answered(by=a.ZURICH), R.UNKNOWN_KEY),
    ("for another spoke", lambda: answered(aud="geneva"), R.WRONG_AUDIENCE),
    ("of another hub", lambda: answered(iss="hub-2"), R.WRONG_ISSUER),
    ("of another federation", lambda: answered(federation=a.ZEROS), R.WRONG_FEDERATION),
    ("the request itself", lambda: REQUEST, R.WRONG_TYPE),
    ("a command", honest, R.WRONG_TYPE),
    ("an ack relabelled as a welcome", lambda: answered().replace(b".ack.", b".welcome."), R.BAD_SIGNATURE),
    ("an ack signed as a welcome", lambda: a.sign(a.payload_in(answered()), purpose=Purpose.WELCOME), R.MALFORMED),
    ("a welcome signed as an ack", lambda: a.sign(a.payload_in(answered(a.welcome())), purpose=Purpose.ACK), R.MALFORMED),
    ("two items", lambda: a.sign(a.payload_of(a.answer_header(re=sha256(REQUEST)), [a.ack(), a.ack()]), purpose=Purpose.ACK), R.MALFORMED),
    ("a command's header", lambda: a.sign(a.payload_of(a.command_header(), [a.ack()]), purpose=Purpose.ACK), R.MALFORMED),
    ("an unknown verdict", lambda: a.sign(a.payload_in(answered(a.welcome())).replace(b"go_on", b"erase"), purpose=Purpose.WELCOME), R.MALFORMED),
    ("version 0", lambda: a.sign(a.payload_in(answered(a.welcome())).replace(b'"version":1', b'"version":0'), purpose=Purpose.WELCOME), R.MALFORMED),
    ("evt_ack twice", lambda: a.sign(a.payload_in(answered()).replace(b'"evt_ack":0', b'"evt_ack":9,"evt_ack":0'), purpose=Purpose.ACK), R.NOT_CANONICAL),
]  # fmt: skip


@rows(ANSWERS)
def test_an_answer_that_the_hub_did_not_give_to_this_request_is_refused(
    attack: Callable[[], bytes], expected: Refusal
):
    data = attack()
    assert refused(lambda: as_an_answer(data)) is expected


# --- every byte, and thousands of mutants ----------------------------------------------------------------

HONEST = {
    at_the_spoke: honest(a.kill()),
    at_the_hub: report(),
    as_an_answer: answered(a.welcome()),
}
DOORS = pytest.mark.parametrize("door", list(HONEST), ids=lambda door: door.__name__)


def is_refused(door: Callable[[bytes], object], data: bytes) -> bool:
    """False if it was accepted; anything but a RefusalError goes on and fails the test."""
    try:
        door(data)
    except RefusalError:
        return True
    return False


@DOORS
def test_the_honest_envelope_opens(door: Callable[[bytes], object]):
    assert door(HONEST[door])


@DOORS
@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80], ids=hex)
def test_an_envelope_with_any_one_byte_altered_is_refused(
    door: Callable[[bytes], object], flip: int
):
    data = HONEST[door]
    for n in range(len(data)):
        altered = data[:n] + bytes([data[n] ^ flip]) + data[n + 1 :]
        assert is_refused(door, altered), f"byte {n} of {data!r}"


@DOORS
def test_an_envelope_that_was_cut_off_anywhere_is_refused(door: Callable[[bytes], object]):
    assert all(is_refused(door, HONEST[door][:n]) for n in range(len(HONEST[door])))


def test_a_payload_with_any_one_byte_altered_and_signed_again_is_another_order_or_refused():
    """A lying hub could say that too; what counts is that there is exactly one reading of what it signed."""
    payload = a.payload_in(HONEST[at_the_spoke])
    for n in range(len(payload)):
        for flip in (0x01, 0x20):
            altered = payload[:n] + bytes([payload[n] ^ flip]) + payload[n + 1 :]
            try:
                opened = open_command(a.sign(altered), a.hub_trust(), a.NOW, a.NOW)
            except RefusalError:
                continue
            again = a.payload_of(opened.header, [trusted.item for trusted in opened.items])
            assert again == altered


def mutant(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Bytes changed, moved, doubled, dropped, or crossed with another envelope."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.randrange(1, 40)
        match rng.randrange(6):
            case 0:
                data[at:at] = rng.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                data[at:at] = data[at : at + length] * rng.randrange(1, 4)
            case 4:
                other = rng.choice(seeds)
                data = data[:at] + other[rng.randrange(len(other)) :]
            case _:
                data[at:at] = rng.choice(TOKENS)
        if not data:
            data = bytearray(b"{")
    return bytes(data)


TOKENS = [
    b"null",
    b"[",
    b"{",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"-1",
    b'"payload":""',
    b"\xff",
    b"[" * 2000,
]


@DOORS
def test_thousands_of_mutants_are_refused_without_an_accident(door: Callable[[bytes], object]):
    rng = random.Random(20261122)
    seeds = list(HONEST.values())
    accepted = 0
    for _ in range(3_000):
        made = mutant(rng, seeds)
        accepted += made not in seeds and not is_refused(door, made)
    assert accepted == 0


@DOORS
def test_thousands_of_signed_mutants_raise_nothing_but_a_refusal(door: Callable[[bytes], object]):
    """The same behind a valid signature, where the strict decoding has to hold alone."""
    rng = random.Random(22112026)
    by = a.ZURICH if door is at_the_hub else a.HUB
    purpose = a.envelope_dict(HONEST[door])["payloadType"]
    seeds = [a.payload_in(data) for data in HONEST.values()]
    for _ in range(1_000):
        made = mutant(rng, seeds)
        is_refused(door, a.sign(made, purpose=purpose, by=by))


def test_random_bytes_are_refused():
    rng = random.Random(0)
    assert all(is_refused(at_the_spoke, rng.randbytes(rng.randrange(2_000))) for _ in range(1_000))


def test_a_signature_covers_type_and_payload_in_an_unambiguous_way():
    assert pae("a", b"b c") != pae("a b", b"c")
    assert pae("a 1 b", b"") != pae("a", b"1 b")
