"""Intake: what a spoke says → what the hub knows, in one transaction per envelope; then the signed answer.

    hello      → go on, or a new incarnation when the spoke's journal is missing or older than what the hub remembers
    heartbeat  → liveness and capacity
    events     → lifecycle facts, acceptance and refusal of commands, proof that something is gone

Events count once: those up to `evt_ack` were committed before, and a gap means that the spoke must send again from
there. Every fact closes what it proves (outbox rows, placements) even when it is too late to change the agent.
"""

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from hub.control import dispatch, operate
from hub.control.dispatch import Seal
from hub.control.fold import Fold
from hub.control.nudges import NOTHING, Nudges
from hub.store import agents, outbox, placements, spokes
from hub.store.spokes import Spoke
from shared.envelope import Refusal, RefusalError
from shared.messages import WIRE_VERSION, Ack, Event, Heartbeat, Hello, Verdict, Welcome
from shared.trust import TrustedReport

log = structlog.get_logger()


def intake(
    connection: sa.Connection, report: TrustedReport, seal: Seal, now_ms: int
) -> tuple[bytes, Nudges]:
    """Take in one verified request of a spoke; returns the signed answer and whom to wake."""
    spoke = spokes.find(connection, report.header.iss)
    if spoke.connection != "active":
        raise RefusalError(Refusal.UNKNOWN_KEY, f"{spoke.id} is {spoke.connection}")
    match report.items[0]:
        case Hello() as hello:
            return _hello(connection, spoke, hello, report, seal=seal, now_ms=now_ms)
        case Heartbeat() as heartbeat:
            nudges = _heartbeat(connection, spoke, heartbeat, report, now_ms)
        case Event():
            events = [item for item in report.items if isinstance(item, Event)]
            nudges = _events(connection, spoke, events, report, now_ms)
        case _:
            raise RefusalError(Refusal.WRONG_TYPE, "not a request")
    return _ack(connection, spoke.id, report, seal, now_ms), nudges


def _ack(
    connection: sa.Connection, spoke_id: str, report: TrustedReport, seal: Seal, now_ms: int
) -> bytes:
    spoke = spokes.find(connection, spoke_id)
    return dispatch.answer(
        connection, spoke, Ack(witness=None), re=report.sha256, seal=seal, now_ms=now_ms
    )


def _hello(
    connection: sa.Connection,
    spoke: Spoke,
    hello: Hello,
    report: TrustedReport,
    *,
    seal: Seal,
    now_ms: int,
) -> tuple[bytes, Nudges]:
    if WIRE_VERSION not in hello.versions:
        raise RefusalError(
            Refusal.MALFORMED, f"{spoke.id} speaks {hello.versions}, this hub {WIRE_VERSION}"
        )
    goes_on = hello.incarnation == spoke.incarnation > 0 and hello.head_seq >= spoke.evt_ack
    if goes_on:
        incarnation, evt_ack, counter = spoke.incarnation, spoke.evt_ack, spoke.heartbeat_counter
    elif report.header.iat <= spoke.hello_ms:
        raise RefusalError(
            Refusal.REPLAYED, f"a hello of {spoke.id} that is older than its last one"
        )
    else:
        incarnation, evt_ack, counter = max(spoke.incarnation, hello.incarnation) + 1, 0, 0
        operate.say_wanted_again(connection, spoke, now_ms)
        log.warning(
            "new_incarnation", spoke=spoke.id, incarnation=incarnation, head_seq=hello.head_seq
        )
    spokes.note_hello(
        connection,
        spoke.id,
        hello.offer,
        incarnation=incarnation,
        evt_ack=evt_ack,
        heartbeat_counter=counter,
        hello_ms=report.header.iat,
        now_ms=now_ms,
    )
    outbox.reopen(connection, spoke.id, now_ms, accepted_too=not goes_on)
    welcome = Welcome(
        nonce=hello.nonce,
        verdict=Verdict.GO_ON if goes_on else Verdict.NEW_INCARNATION,
        version=WIRE_VERSION,
        witness=None,
    )
    now_known = spokes.find(connection, spoke.id)
    sealed = dispatch.answer(
        connection, now_known, welcome, re=report.sha256, seal=seal, now_ms=now_ms
    )
    return sealed, Nudges(place=True, spokes=frozenset({spoke.id}))


def _heartbeat(
    connection: sa.Connection,
    spoke: Spoke,
    heartbeat: Heartbeat,
    report: TrustedReport,
    now_ms: int,
) -> Nudges:
    _check_incarnation(spoke, report)
    if heartbeat.counter <= spoke.heartbeat_counter:
        return NOTHING
    spokes.note_heartbeat(connection, spoke, heartbeat, report.header.iat - now_ms, now_ms)
    return Nudges(place=True, spokes=frozenset({spoke.id}))


def _events(
    connection: sa.Connection,
    spoke: Spoke,
    events: Sequence[Event],
    report: TrustedReport,
    now_ms: int,
) -> Nudges:
    _check_incarnation(spoke, report)
    fresh = _contiguous(events, spoke.evt_ack)
    if not fresh:
        return NOTHING
    known = agents.find_many(
        connection, {event.agent for event in fresh if event.agent is not None}
    )
    fold = Fold(spoke, known, placements.open_at(connection, spoke.id, known), now_ms)
    for event in fresh:
        fold.add(event)
    fold.store(connection)
    spokes.note_events(connection, spoke.id, fresh[-1].seq, now_ms)
    return Nudges(place=True, agents=frozenset(known))


def _contiguous(events: Sequence[Event], evt_ack: int) -> list[Event]:
    """Return the events that follow directly on what is committed; after a gap the spoke sends again."""
    fresh: list[Event] = []
    for event in events:
        if event.seq == evt_ack + 1 + len(fresh):
            fresh.append(event)
    return fresh


def _check_incarnation(spoke: Spoke, report: TrustedReport) -> None:
    if report.header.inc != spoke.incarnation:
        raise RefusalError(
            Refusal.WRONG_INCARNATION, f"{report.header.inc}, the hub knows {spoke.incarnation}"
        )
