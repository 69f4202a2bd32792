"""What happened to agents, in the order in which the hub committed it: what SSE replays and the API lists."""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import events
from shared.lifecycle import State

_COLUMNS = tuple(str(column.name) for column in events.columns)


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A fact that is about to be stored; `at_ms` by the clock of who saw it, `recorded_ms` by the hub's."""

    tenant: str
    agent: str
    at_ms: int
    recorded_ms: int
    kind: str
    state: State
    reason: str
    gen: int
    attempt: int
    spoke: str | None


class AgentEvent(NewEvent, frozen=True, kw_only=True):
    """A stored fact; ids rise over the whole hub."""

    id: int


def append(connection: sa.Connection, facts: Sequence[NewEvent]) -> None:
    bulk.insert(connection, events, [msgspec.structs.asdict(fact) for fact in facts])


def after(
    connection: sa.Connection, tenant: str, last_id: int, limit: int, agent: str | None = None
) -> list[AgentEvent]:
    """Return the facts that follow `last_id`, oldest first."""
    query = sa.select(events).where(events.c.id > last_id, events.c.tenant == tenant)
    if agent is not None:
        query = query.where(events.c.agent == agent)
    rows = connection.execute(query.order_by(events.c.id).limit(limit))
    return [msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), AgentEvent) for row in rows]


def newest_id(connection: sa.Connection) -> int:
    """Return the id of the newest fact, 0 when there is none: where a live stream begins."""
    return connection.execute(sa.select(sa.func.max(events.c.id))).scalar() or 0
