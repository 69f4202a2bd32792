"""What goes into the queue and what comes out, and how it travels to the scripts and back.

The scripts speak MessagePack (Lua's `cmsgpack`, which knows no binary type and has no null in a table), so the exact
bytes of items travel beside it as plain strings, and what is absent is left out and has a default here.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, assert_never

import msgspec

from shared.envelope import Refusal
from shared.messages import (
    Command,
    Cordon,
    Drain,
    Event,
    EventKind,
    Exit,
    Kill,
    Pause,
    RefreshTrust,
    Remove,
    Resume,
    Spawn,
    Status,
    Tail,
)
from shared.trust import TrustedItem

# As `shared.messages.Text`: what is longer would be refused by the hub, and the event never acknowledged.
_REASON_MAX: Final = 1024
# ARGV[1..5] of every script are the daemon's view, its clock and the packed input.
_FIRST_RAW_ARG: Final = 6

OUTCOMES: Final = frozenset(
    {EventKind.SUCCEEDED, EventKind.FAILED, EventKind.KILLED, EventKind.EXPIRED}
)


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon finds when it takes the queue over; `fence` is below all that it will lease."""

    host: str
    epoch: int
    incarnation: int
    head_seq: int
    evt_ack: int
    rev: int
    paused: bool
    cordoned: bool
    fence: int


class VerdictKind(StrEnum):
    """What became of one command item."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # same id, same bytes: its event is there already
    EQUIVOCATION = "equivocation"  # same id, other bytes: an alarm
    REFUSED = "refused"
    NO_EFFECT = "no_effect"  # answered, but nothing changed: known, closed, or an old revision


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one command item; `kill`: a live attempt of its agent must be killed now."""

    kind: VerdictKind
    kill: bool
    reason: str


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The claim on one attempt. `attempt` counts from 1, `retries` those used before it."""

    agent: str
    gen: int
    attempt: int
    fence: int
    cmd: str
    cmd_sha256: str
    item: bytes  # the Spawn's exact signed bytes
    retries: int
    kill: bool = False
    kill_grace_ms: int | None = None
    kill_reason: str = ""


class Leased(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of `Queue.lease` handed out, and when the next retry or deadline is due."""

    leases: list[Lease]
    next_due_ms: int | None = None


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Names one attempt under one lease; of no effect when the fence is stale."""

    agent: str
    gen: int
    attempt: int
    fence: int


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended: an outcome, or RETRYING with `retry_at` (Unix ms). `dead`: also a dead letter."""

    agent: str
    gen: int
    attempt: int
    fence: int
    kind: EventKind
    reason: str = ""
    exit: Exit | None = None
    retry_at: int | None = None
    dead: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue knows of one agent. `position` is in its tenant's queue, 1 is next; None unless queued."""

    gen: int
    state: Literal["queued", "leased", "running", "retrying"]
    attempt: int
    fence: int
    since: int
    kill: bool
    position: int | None = None


class LeaseFields(msgspec.Struct, frozen=True):
    """A lease as it comes from the scripts: its item's bytes come beside it."""

    agent: str
    gen: int
    attempt: int
    fence: int
    cmd: str
    cmd_sha256: str
    retries: int
    kill: bool
    kill_reason: str
    kill_grace_ms: int | None = None

    def with_item(self, item: bytes) -> Lease:
        return Lease(
            agent=self.agent,
            gen=self.gen,
            attempt=self.attempt,
            fence=self.fence,
            cmd=self.cmd,
            cmd_sha256=self.cmd_sha256,
            item=item,
            retries=self.retries,
            kill=self.kill,
            kill_grace_ms=self.kill_grace_ms,
            kill_reason=self.kill_reason,
        )


class LeasedFields(msgspec.Struct, frozen=True):
    leases: list[LeaseFields]
    next_due_ms: int | None = None


class EventFields(msgspec.Struct, frozen=True):
    """An event as the scripts keep it."""

    seq: int
    kind: EventKind
    cmd: str
    cmd_sha256: str
    reason: str
    at: int
    agent: str | None = None
    gen: int = 0
    attempt: int = 0
    fence: int = 0
    exit: Exit | None = None
    retry_at: int | None = None

    def as_event(self) -> Event:
        return Event(
            seq=self.seq,
            kind=self.kind,
            cmd=self.cmd,
            cmd_sha256=self.cmd_sha256,
            agent=self.agent,
            gen=self.gen,
            attempt=self.attempt,
            fence=self.fence,
            reason=self.reason,
            at=self.at,
            exit=self.exit,
            retry_at=self.retry_at,
        )


def pack_items(
    items: Sequence[TrustedItem[Command]], refused: Mapping[str, tuple[Refusal, str]]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the items for the intake script and the Spawns' bytes; raises ValueError for a query.

    A kill is never refused, so the gate's word about one is not heard.
    """
    packed: list[dict[str, Any]] = []
    raws: list[bytes] = []
    for trusted in items:
        command = trusted.item
        fields = {"id": command.id, "sha": trusted.sha256, **_fields_of(command)}
        if isinstance(command, Spawn):
            fields["raw"] = _FIRST_RAW_ARG + len(raws)
            raws.append(trusted.raw)
        if command.id in refused and not isinstance(command, Kill):
            refusal, detail = refused[command.id]
            fields["refused"] = cut(f"{refusal}: {detail}" if detail else refusal)
        packed.append(fields)
    return packed, raws


def check_end(end: End) -> End:
    """Return `end` with a reason that fits; raises ValueError where kind and `retry_at` do not go together."""
    if end.kind is not EventKind.RETRYING and end.kind not in OUTCOMES:
        raise ValueError(f"{end.kind} is not how an attempt ends")
    if (end.kind is EventKind.RETRYING) != (end.retry_at is not None):
        raise ValueError("retry_at belongs to RETRYING, and only there")
    return msgspec.structs.replace(end, reason=cut(end.reason))


def cut(reason: str) -> str:
    return reason[:_REASON_MAX]


def _fields_of(command: Command) -> dict[str, Any]:
    match command:
        case Spawn():
            return _spawn_fields(command)
        case Kill():
            reason = command.reason or "killed"
            target = {"op": "kill", "agent": command.agent, "gen": command.gen, "reason": reason}
            return target if command.grace_ms is None else target | {"grace": command.grace_ms}
        case Remove():
            target = {"op": "remove", "agent": command.agent, "gen": command.gen}
            return target | {"reason": "removed"}
        case Pause() | Resume() | Drain():
            return {"op": type(command).__name__.lower(), "rev": command.rev}
        case Cordon():
            return {"op": "cordon", "rev": command.rev, "on": command.on}
        case RefreshTrust():
            return {"op": "refreshtrust"}
        case Status() | Tail():
            raise ValueError("a query is answered, not queued")
        case _:
            assert_never(command)


def _spawn_fields(spawn: Spawn) -> dict[str, Any]:
    fields = {
        "op": "spawn",
        "agent": spawn.agent,
        "gen": spawn.gen,
        "tenant": spawn.tenant,
        "weight": spawn.spec.weight,
        "prio": spawn.spec.priority,
        "arrived": spawn.spec.arrived_ms,
    }
    deadline = spawn.spec.deadline_ms
    return fields if deadline is None else fields | {"deadline": deadline}
