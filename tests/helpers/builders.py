"""Things that tests need, each with a value for everything that the test does not care about.

Keys are made from fixed seeds, ids count up: what a test prints is the same in every run.
"""

import base64
import json
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.envelope import pack, pae
from shared.messages import (
    Ack,
    AgentSpec,
    AnswerHeader,
    Command,
    CommandHeader,
    Event,
    EventKind,
    Heartbeat,
    Hello,
    Kill,
    Limits,
    LogChunk,
    LogKind,
    LogStream,
    Network,
    Offer,
    OnLost,
    OnPartition,
    Pause,
    Purpose,
    QueueCounts,
    Reply,
    SandboxKind,
    Simulation,
    Spawn,
    SpokeHeader,
    Status,
    Stderr,
    Tail,
    Verdict,
    Welcome,
)
from shared.signers import KeySigner, Signer
from shared.trust import HubTrust, SpokeTrust, encode_item, federation_of, seal_commands

NOW: Final = 1_795_000_000_000  # Unix ms, in November 2026
MINUTE: Final = 60_000
ZEROS: Final = "0" * 64

_counter = count(1)


def signer(seed: int) -> KeySigner:
    """A key that is the same for the same seed."""
    return KeySigner(Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "little")))


HUB: Final = signer(1)
ZURICH: Final = signer(2)
GENEVA: Final = signer(3)
STRANGER: Final = signer(4)
FEDERATION: Final = federation_of(HUB.public)


def new_id(at: int = NOW) -> str:
    """A UUIDv7 that sorts after the ones before it."""
    n = next(_counter)
    digits = f"{at:012x}7{n >> 62:03x}{1 << 63 | n & ((1 << 62) - 1):016x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


# --- what to run -------------------------------------------------------------------------------------


def spec(**changes: Any) -> AgentSpec:
    """A simulated agent that ends at once."""
    return msgspec.structs.replace(
        AgentSpec(
            type="",
            command=("true",),
            env={},
            input="",
            sandbox=SandboxKind.SIMULATED,
            network=Network.NONE,
            mounts=(),
            limits=Limits(),
            priority=5,
            arrived_ms=NOW,
            deadline_ms=None,
            timeout_ms=None,
            grace_ms=10_000,
            max_retries=3,
            on_lost=OnLost.WAIT,
            on_partition=OnPartition.CONTINUE,
            stderr=Stderr.MERGED,
            handles_sigterm=False,
            weight=1,
            simulation=Simulation(),
        ),
        **changes,
    )


# --- commands ----------------------------------------------------------------------------------------


def _asked(**changes: Any) -> dict[str, Any]:
    return {"id": new_id(), "actor": "tester", "tenant": "default", "trace": ""} | changes


def spawn(**changes: Any) -> Spawn:
    return Spawn(**_asked(agent=new_id(), gen=1, spec=spec()) | changes)


def kill(**changes: Any) -> Kill:
    return Kill(**_asked(agent=new_id(), gen=1, grace_ms=None, reason="asked") | changes)


def pause(**changes: Any) -> Pause:
    return Pause(**_asked(rev=1) | changes)


def status(**changes: Any) -> Status:
    return Status(**_asked(agent=new_id(), gen=1, reader="hub-1") | changes)


def tail(**changes: Any) -> Tail:
    fields = {"agent": new_id(), "gen": 1, "attempt": 1, "offset": 0, "lease_ms": 30_000}
    return Tail(**_asked(**fields, follow=True, reader="hub-1") | changes)


# --- from the spoke ----------------------------------------------------------------------------------


def event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "seq": 1,
        "kind": EventKind.QUEUED,
        "cmd": new_id(),
        "cmd_sha256": ZEROS,
        "agent": new_id(),
        "gen": 1,
        "attempt": 0,
        "fence": 0,
        "reason": "",
        "at": NOW,
        "exit": None,
        "retry_at": None,
    }
    return Event(**fields | changes)


def offer(**changes: Any) -> Offer:
    fields: dict[str, Any] = {
        "slots": 200,
        "prefetch": 400,
        "cap": 2_000,
        "kinds": (SandboxKind.SIMULATED,),
        "mounts": (),
        "labels": {},
        "lacks": (),
        "policy": ZEROS,
        "version": "0.1.0",
    }
    return Offer(**fields | changes)


def hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "nonce": ZEROS,
        "incarnation": 1,
        "head_seq": 0,
        "inventory": ZEROS,
        "versions": (1,),
        "offer": offer(),
    }
    return Hello(**fields | changes)


def heartbeat(**changes: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "counter": 1,
        "head_seq": 0,
        "counts": QueueCounts(queued=0, running=0, retrying=0, dead=0),
        "full": False,
        "paused": False,
        "cordoned": False,
        "rev": 0,
        "inventory": ZEROS,
        "policy": ZEROS,
        "trust_version": 0,
        "trouble": "",
        "refusals": {},
    }
    return Heartbeat(**fields | changes)


def reply(**changes: Any) -> Reply:
    fields: dict[str, Any] = {
        "cmd": new_id(),
        "agent": new_id(),
        "gen": 1,
        "known": True,
        "state": "running",
        "attempt": 1,
        "fence": 1,
        "position": None,
        "since": NOW,
        "processes": 1,
        "output_bytes": 0,
    }
    return Reply(**fields | changes)


def log_chunk(**changes: Any) -> LogChunk:
    fields: dict[str, Any] = {
        "cmd": new_id(),
        "agent": new_id(),
        "gen": 1,
        "attempt": 1,
        "kind": LogKind.DATA,
        "stream": LogStream.OUT,
        "offset": 0,
        "data": b"hello\n",
        "length": 0,
        "reason": "",
    }
    return LogChunk(**fields | changes)


# --- answers from the hub ----------------------------------------------------------------------------


def ack() -> Ack:
    return Ack(witness=None)


def welcome(**changes: Any) -> Welcome:
    fields: dict[str, Any] = {
        "nonce": ZEROS,
        "verdict": Verdict.GO_ON,
        "version": 1,
        "witness": None,
    }
    return Welcome(**fields | changes)


# --- headers, and who believes whom ------------------------------------------------------------------


def command_header(**changes: Any) -> CommandHeader:
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "iss": "hub",
        "aud": "zurich",
        "inc": 1,
        "iat": NOW,
        "exp": NOW + 5 * MINUTE,
        "hub_epoch": 1,
        "evt_ack": 0,
    }
    return CommandHeader(**fields | changes)


def answer_header(**changes: Any) -> AnswerHeader:
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "iss": "hub",
        "aud": "zurich",
        "inc": 1,
        "iat": NOW,
        "hub_epoch": 1,
        "evt_ack": 0,
        "re": ZEROS,
    }
    return AnswerHeader(**fields | changes)


def spoke_header(**changes: Any) -> SpokeHeader:
    fields: dict[str, Any] = {"federation": FEDERATION, "iss": "zurich", "inc": 1, "iat": NOW}
    return SpokeHeader(**fields | changes)


def hub_trust(**changes: Any) -> HubTrust:
    """What the spoke `zurich` knows of its hub."""
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "hub": "hub",
        "spoke": "zurich",
        "incarnation": 1,
        "keys": {HUB.key_id: HUB.public},
    }
    return HubTrust(**fields | changes)


def spoke_trust(**changes: Any) -> SpokeTrust:
    """What the hub knows of the spoke `zurich`."""
    fields: dict[str, Any] = {
        "federation": FEDERATION,
        "spoke": "zurich",
        "keys": {ZURICH.key_id: ZURICH.public},
    }
    return SpokeTrust(**fields | changes)


def commands(*items: Command, by: Signer = HUB, **header: Any) -> bytes:
    """A sealed envelope of commands."""
    return seal_commands(command_header(**header), [encode_item(item) for item in items], by)


# --- a sender that can lie ---------------------------------------------------------------------------


def sign(payload: bytes, *, purpose: str = Purpose.COMMAND, by: Signer = HUB) -> bytes:
    """A validly signed envelope around any payload at all."""
    return pack(purpose, payload, [(by.key_id, by.sign(pae(purpose, payload)))])


def payload_of(header: msgspec.Struct | bytes, items: Sequence[msgspec.Struct | bytes]) -> bytes:
    """The payload for a header and items that may be given as raw bytes."""
    raws = [part if isinstance(part, bytes) else msgspec.json.encode(part) for part in items]
    head = header if isinstance(header, bytes) else msgspec.json.encode(header)
    return b'{"header":' + head + b',"items":[' + b",".join(raws) + b"]}"


def envelope_dict(data: bytes) -> dict[str, Any]:
    """The envelope as plain JSON values, to be tampered with."""
    return json.loads(data)


def envelope_bytes(envelope: dict[str, Any]) -> bytes:
    """Plain JSON values in the compact form that we send."""
    return json.dumps(envelope, separators=(",", ":"), ensure_ascii=False).encode()


def payload_in(data: bytes) -> bytes:
    """The exact signed bytes in an envelope, unverified."""
    return base64.b64decode(json.loads(data)["payload"])
