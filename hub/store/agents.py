"""Agents: the rows, the lists that operators ask for, and what placement looks for among the pending.

Pending agents are found by *signature* (everything that decides where they may go) and priority, so a look at the
backlog costs what there are different signatures, not what there are agents.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import agents
from shared.errors import NotFoundError
from shared.lifecycle import State
from shared.messages import AgentSpec, Exit


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """One row; JSON columns stay text until they are asked for."""

    id: str
    tenant: str
    actor: str
    trace: str
    idempotency_key: str | None
    request_sha256: str
    spec_json: str = msgspec.field(name="spec")
    labels_json: str = msgspec.field(name="labels")
    selector_json: str = msgspec.field(name="selector")
    pinned: str | None
    signature: str
    priority: int
    start_ms: int | None
    deadline_ms: int | None
    state: State
    reason: str
    gen: int = 0
    attempt: int = 0
    spoke: str | None = None
    exit_json: str | None = msgspec.field(name="exit", default=None)
    dead: bool = False
    created_ms: int
    updated_ms: int
    observed_ms: int | None = None
    retry_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    kill_gen: int = 0
    kill_requested_ms: int | None = None
    kill_accepted_ms: int | None = None
    kill_confirmed_ms: int | None = None

    @property
    def spec(self) -> AgentSpec:
        return msgspec.json.decode(self.spec_json, type=AgentSpec)

    @property
    def labels(self) -> dict[str, str]:
        return msgspec.json.decode(self.labels_json, type=dict[str, str])

    @property
    def selector(self) -> dict[str, str]:
        return msgspec.json.decode(self.selector_json, type=dict[str, str])

    @property
    def exit(self) -> Exit | None:
        return None if self.exit_json is None else msgspec.json.decode(self.exit_json, type=Exit)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of agents is narrowed to; all that is given must hold."""

    tenant: str
    states: tuple[State, ...] = ()
    spoke: str | None = None
    type: str | None = None
    labels: Mapping[str, str] = {}
    dead: bool | None = None
    ids: tuple[str, ...] = ()


class PendingHead(msgspec.Struct, frozen=True):
    """What placement needs of a pending agent."""

    id: str
    tenant: str
    actor: str
    trace: str
    spec_json: str
    priority: int
    created_ms: int
    gen: int
    kill_gen: int


_COLUMNS: Final = tuple(str(column.name) for column in agents.columns)
_BY_ID: Final = sa.select(agents).where(
    agents.c.id.in_(sa.text("SELECT value FROM json_each(:ids)"))
)


def to_row(agent: Agent) -> dict[str, Any]:
    """Return the columns of an agent."""
    return msgspec.to_builtins(agent)


def insert(connection: sa.Connection, new: Sequence[Agent]) -> None:
    bulk.insert(connection, agents, [to_row(agent) for agent in new])


def update(connection: sa.Connection, rows: Sequence[bulk.Row]) -> None:
    """Update agents by `id`; all rows set the same columns."""
    bulk.update(connection, agents, ("id",), rows)


def find(connection: sa.Connection, tenant: str, agent_id: str) -> Agent:
    """Return one agent; raises NotFoundError, also for another tenant's."""
    query = sa.select(agents).where(agents.c.id == agent_id, agents.c.tenant == tenant)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"no agent {agent_id}")
    return _agent(row)


def find_many(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Agent]:
    """Return those of the agents that exist, by id, whatever their tenant."""
    rows = connection.execute(_BY_ID, {"ids": bulk.texts(list(ids))})
    return {row.id: _agent(row) for row in rows}


def by_keys(connection: sa.Connection, tenant: str, keys: Sequence[str]) -> dict[str, Agent]:
    """Return the tenant's agents that were spawned under these idempotency keys, by key."""
    wanted = agents.c.idempotency_key.in_(sa.text("SELECT value FROM json_each(:keys)"))
    query = sa.select(agents).where(agents.c.tenant == tenant, wanted)
    rows = connection.execute(query, {"keys": bulk.texts(keys)})
    return {row.idempotency_key: _agent(row) for row in rows}


def page(connection: sa.Connection, wanted: Filter, before: str | None, limit: int) -> list[Agent]:
    """Return up to `limit` agents, newest first, older than the id `before`."""
    query = sa.select(agents).where(agents.c.tenant == wanted.tenant)
    if wanted.states:
        query = query.where(agents.c.state.in_([str(state) for state in wanted.states]))
    if wanted.spoke is not None:
        query = query.where(agents.c.spoke == wanted.spoke)
    if wanted.type is not None:
        query = query.where(sa.func.json_extract(agents.c.spec, "$.type") == wanted.type)
    if wanted.dead is not None:
        query = query.where(_DEAD if wanted.dead else ~agents.c.dead)
    if wanted.ids:
        query = query.where(agents.c.id.in_(wanted.ids))
    for key, value in wanted.labels.items():
        query = query.where(sa.func.json_extract(agents.c.labels, f'$."{key}"') == value)
    if before is not None:
        query = query.where(agents.c.id < before)
    rows = connection.execute(query.order_by(agents.c.id.desc()).limit(limit))
    return [_agent(row) for row in rows]


def counts(connection: sa.Connection, tenant: str) -> dict[str | None, dict[State, int]]:
    """Return how many agents are in each state, per spoke (None: no spoke yet)."""
    query = sa.select(agents.c.spoke, agents.c.state, sa.func.count()).where(
        agents.c.tenant == tenant
    )
    found: dict[str | None, dict[State, int]] = {}
    for spoke, state, count in connection.execute(query.group_by(agents.c.spoke, agents.c.state)):
        found.setdefault(spoke, {})[State(state)] = count
    return found


def dead_counts(connection: sa.Connection, tenant: str) -> dict[str | None, int]:
    """Return how many dead letters there are, per spoke."""
    query = sa.select(agents.c.spoke, sa.func.count()).where(_DEAD, agents.c.tenant == tenant)
    return {row.spoke: row[1] for row in connection.execute(query.group_by(agents.c.spoke))}


# As it stands at the partial index: SQLite can't prove `dead = 1` to be the same.
_DEAD: Final = sa.text("agents.dead")


# --- the pending -------------------------------------------------------------------------------------


def position(connection: sa.Connection, agent: Agent) -> int | None:
    """Return how many pending agents with the same signature go first, plus one; ageing is not counted."""
    if agent.state is not State.PENDING:
        return None
    same = (agents.c.state == State.PENDING.value, agents.c.signature == agent.signature)
    earlier = sa.tuple_(agents.c.created_ms, agents.c.id) < sa.tuple_(
        sa.literal(agent.created_ms), sa.literal(agent.id)
    )
    ahead = sa.or_(
        agents.c.priority > agent.priority, sa.and_(agents.c.priority == agent.priority, earlier)
    )
    return 1 + (connection.execute(sa.select(sa.func.count()).where(*same, ahead)).scalar() or 0)


def pending_signatures(connection: sa.Connection) -> list[str]:
    """Return the different signatures among the pending: a skip scan, one index seek for each."""
    return [row[0] for row in connection.exec_driver_sql(_SIGNATURES)]


def pending_heads(
    connection: sa.Connection, signature: str, takers: Sequence[tuple[str, str]], limit: int
) -> list[PendingHead]:
    """Return, for each priority, the `limit` pending agents that arrived first and that one of `takers` may have.

    A taker is (spoke, its policy's digest): who was refused by all of them would only stand in the others' way.
    """
    found, priorities = (
        bulk.tuples(takers),
        connection.exec_driver_sql(_PRIORITIES, (signature, signature)),
    )
    heads: list[PendingHead] = []
    for (priority,) in priorities.fetchall():
        values = (signature, priority, found, len(takers), limit)
        heads.extend(PendingHead(*row) for row in connection.exec_driver_sql(_HEADS, values))
    return heads


def due(connection: sa.Connection, now_ms: int, limit: int) -> list[Agent]:
    """Return agents whose start time has come, the earliest first."""
    return [_agent(row) for row in connection.execute(_DUE, {"now_ms": now_ms, "limit": limit})]


def overdue(connection: sa.Connection, now_ms: int, limit: int) -> list[Agent]:
    """Return agents without a placement whose deadline has passed, the earliest first."""
    return [
        _agent(row) for row in connection.execute(_OVERDUE, {"now_ms": now_ms, "limit": limit})
    ]


def _agent(row: sa.Row[tuple[Any, ...]]) -> Agent:
    return msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), Agent)


# `INDEXED BY`: without statistics SQLite prefers the index on the state, and so reads the whole backlog each time. The
# states are written out, since SQLite can't prove a partial index's condition from bound values.
_ALL: Final = ", ".join(_COLUMNS)
_DUE: Final = sa.text(
    f"SELECT {_ALL} FROM agents INDEXED BY ix_agents_waiting"  # noqa: S608 - our names
    " WHERE state = 'waiting' AND start_ms <= :now_ms ORDER BY start_ms LIMIT :limit"
).columns(*agents.columns)
_OVERDUE: Final = sa.text(
    f"SELECT {_ALL} FROM agents INDEXED BY ix_agents_deadline"  # noqa: S608 - our names
    " WHERE deadline_ms IS NOT NULL AND state IN ('held', 'waiting', 'pending') AND deadline_ms <= :now_ms"
    " ORDER BY deadline_ms LIMIT :limit"
).columns(*agents.columns)
_SIGNATURES: Final = """
WITH RECURSIVE seen(s) AS (
  SELECT min(signature) FROM agents INDEXED BY ix_agents_pending WHERE state = 'pending'
  UNION ALL
  SELECT (SELECT min(signature) FROM agents INDEXED BY ix_agents_pending WHERE state = 'pending' AND signature > seen.s)
  FROM seen WHERE seen.s IS NOT NULL
) SELECT s FROM seen WHERE s IS NOT NULL
"""
_PRIORITIES: Final = """
WITH RECURSIVE seen(p) AS (
  SELECT max(priority) FROM agents WHERE state = 'pending' AND signature = ?1
  UNION ALL
  SELECT (SELECT max(priority) FROM agents WHERE state = 'pending' AND signature = ?2 AND priority < seen.p)
  FROM seen WHERE seen.p IS NOT NULL
) SELECT p FROM seen WHERE p IS NOT NULL
"""
_HEADS: Final = """
SELECT id, tenant, actor, trace, spec, priority, created_ms, gen, kill_gen FROM agents
WHERE state = 'pending' AND signature = ? AND priority = ? AND (
  SELECT count(*) FROM exclusions x JOIN json_each(?) t ON x.spoke = t.value ->> 0 AND x.policy = t.value ->> 1
  WHERE x.agent = agents.id) < ?
ORDER BY created_ms, id LIMIT ?
"""
