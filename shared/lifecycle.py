"""The life of an agent: one table, which knows nothing of roles.

A *state* is the last proven fact about an agent. A *fact* is what may happen to it next. The hub applies the
table to every fact that arrives, the spoke to every fact that it is about to send, so neither can bend it:

    held ─ released ─▶ waiting ─ due ─▶ pending ─ placed ─▶ placed ─ queued ─▶ queued ─ running ─▶ running
                                          ▲                   │                   ▲                  │
                                          └──── returned ─────┘                   └──── retrying ────┤
                                                                                                     ▼
                                          cancelled  expired  killed  lost             succeeded  failed

A fact that a state has no entry for is *stale*: it changes nothing and is counted, never an exception, because
messages are delivered at least once and may overtake each other. Facts name the state they lead to, except those
that lead back (`released`, `due`, `returned`, `requeued`). `docs/reference/lifecycle.md` is generated from here.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class State(StrEnum):
    """What an agent is, as the API shows it."""

    HELD = "held"  # created with `hold`, waits for a release
    WAITING = "waiting"  # for its start time or its dependencies
    PENDING = "pending"  # no spoke yet
    PLACED = "placed"  # a spoke was chosen, its acceptance is not known yet
    QUEUED = "queued"  # accepted by the spoke: inbox and queue are committed there
    RUNNING = "running"  # an attempt is alive
    RETRYING = "retrying"  # queued with a delay, after an attempt that failed
    SUCCEEDED = "succeeded"  # it exited with code 0
    FAILED = "failed"  # its attempts are used up, or another one could not help
    KILLED = "killed"  # by order, and proven gone
    CANCELLED = "cancelled"  # a dependency failed
    EXPIRED = "expired"  # its deadline passed before it started
    LOST = "lost"  # the hub's word only: nothing was heard of its spoke for `lost_after`


class Fact(StrEnum):
    """What can happen to an agent."""

    RELEASED = "released"  # an operator lets a held agent go
    DUE = "due"  # its start time has come and its dependencies are done
    PLACED = "placed"
    RETURNED = "returned"  # the spoke refused for now (`queue_full`, `policy`): place it elsewhere or later
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    KILLED = "killed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    REQUEUED = "requeued"  # a dead letter that an operator sends back: a new generation


S, F = State, Fact

# Any signed fact may follow directly on `placed`, `queued` or `retrying`: the events before it may have been
# overtaken by a reconnect, and each one proves what went before.
_PROVEN: Final = {
    F.QUEUED: S.QUEUED,
    F.RUNNING: S.RUNNING,
    F.RETRYING: S.RETRYING,
    F.SUCCEEDED: S.SUCCEEDED,
    F.FAILED: S.FAILED,
    F.KILLED: S.KILLED,
    F.EXPIRED: S.EXPIRED,
}
_BEFORE_PLACEMENT: Final = {F.KILLED: S.KILLED, F.CANCELLED: S.CANCELLED, F.EXPIRED: S.EXPIRED}

TRANSITIONS: Final[Mapping[State, Mapping[Fact, State]]] = MappingProxyType(
    {
        S.HELD: {F.RELEASED: S.WAITING, **_BEFORE_PLACEMENT},
        S.WAITING: {F.DUE: S.PENDING, **_BEFORE_PLACEMENT},
        S.PENDING: {F.PLACED: S.PLACED, **_BEFORE_PLACEMENT},
        S.PLACED: {**_PROVEN, F.RETURNED: S.PENDING, F.LOST: S.LOST},
        # A spoke that lost its journal is sent its open Spawns again, and may then refuse what it had accepted.
        S.QUEUED: {**_PROVEN, F.RETURNED: S.PENDING, F.LOST: S.LOST},
        S.RUNNING: {**_PROVEN, F.RETURNED: S.PENDING, F.LOST: S.LOST},
        S.RETRYING: {**_PROVEN, F.RETURNED: S.PENDING, F.LOST: S.LOST},
        S.SUCCEEDED: {},
        S.FAILED: {F.REQUEUED: S.PENDING},
        S.KILLED: {},
        S.CANCELLED: {},
        S.EXPIRED: {},
        # `lost` is a guess of the hub: any signed fact of the same generation replaces it.
        S.LOST: {**_PROVEN, F.REQUEUED: S.PENDING},
    }
)

ENDED: Final = frozenset({S.SUCCEEDED, S.FAILED, S.KILLED, S.CANCELLED, S.EXPIRED, S.LOST})
AT_SPOKE: Final = frozenset({S.PLACED, S.QUEUED, S.RUNNING, S.RETRYING})

# The five counts that operators know.
COUNTS: Final[Mapping[str, frozenset[State]]] = MappingProxyType(
    {
        "pending": frozenset({S.HELD, S.WAITING, S.PENDING, S.PLACED, S.QUEUED}),
        "active": frozenset({S.RUNNING}),
        # And those `waiting` for a start time, which only the hub knows.
        "delayed": frozenset({S.RETRYING}),
        "completed": frozenset({S.SUCCEEDED}),
        "failed": frozenset({S.FAILED, S.KILLED, S.CANCELLED, S.EXPIRED, S.LOST}),
    }
)


def advance(state: State, fact: Fact) -> State | None:
    """Return the state after `fact`, or None where the fact is stale and changes nothing."""
    return TRANSITIONS[state].get(fact)
