"""Placements: one row per (agent, generation), and `gone_ms`, the proof that nothing of it is left at its spoke."""

from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import placements


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a generation was sent, and what is known of it there."""

    agent: str
    gen: int
    tenant: str
    spoke: str
    cmd: str
    cmd_sha256: str
    placed_ms: int
    accepted_ms: int | None = None
    gone_ms: int | None = None


def insert(connection: sa.Connection, new: Sequence[Placement]) -> None:
    bulk.insert(connection, placements, [msgspec.structs.asdict(placement) for placement in new])


def of_agent(connection: sa.Connection, agent: str) -> list[Placement]:
    """Return an agent's placements, oldest generation first."""
    query = sa.select(placements).where(placements.c.agent == agent).order_by(placements.c.gen)
    return [Placement(**row) for row in connection.execute(query).mappings()]


def unfinished(connection: sa.Connection) -> dict[str, int]:
    """Return how many placements are not proven gone, per spoke: what credit is counted against."""
    query = "SELECT spoke, count(*) FROM placements WHERE gone_ms IS NULL GROUP BY spoke"
    return {row[0]: row[1] for row in connection.exec_driver_sql(query)}


def open_at(
    connection: sa.Connection, spoke: str, ids: Iterable[str]
) -> dict[str, dict[int, str]]:
    """Return agent → generation → id of its Spawn, for what was placed at `spoke` and is not proven gone from there."""
    found: dict[str, dict[int, str]] = {}
    for agent, gen, cmd in connection.exec_driver_sql(_OPEN_AT, (bulk.texts(list(ids)), spoke)):
        found.setdefault(agent, {})[gen] = cmd
    return found


def accept(connection: sa.Connection, rows: Sequence[tuple[str, int, int]]) -> None:
    """Note acceptance: (agent, generation, at)."""
    if rows:
        connection.exec_driver_sql(_ACCEPT, (bulk.tuples(rows),))


def close(connection: sa.Connection, spoke: str, rows: Sequence[tuple[str, int, int]]) -> None:
    """Note that a generation is gone from `spoke`: (agent, generation, at)."""
    if rows:
        connection.exec_driver_sql(_CLOSE, (bulk.tuples(rows), spoke))


def with_open_kill(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
    """Return those of the agents that still have a placement within their kill's reach that is not gone."""
    rows = connection.exec_driver_sql(_OPEN_KILLS, (bulk.texts(ids),))
    return {row[0] for row in rows}


_ACCEPT = """
UPDATE placements SET accepted_ms = r.at
FROM (SELECT value ->> 0 AS agent, value ->> 1 AS gen, value ->> 2 AS at FROM json_each(?)) AS r
WHERE placements.agent = r.agent AND placements.gen = r.gen AND placements.accepted_ms IS NULL
"""
_CLOSE = """
UPDATE placements SET gone_ms = r.at
FROM (SELECT value ->> 0 AS agent, value ->> 1 AS gen, value ->> 2 AS at FROM json_each(?)) AS r
WHERE placements.agent = r.agent AND placements.gen = r.gen AND +placements.spoke = ? AND placements.gone_ms IS NULL
"""
# `+`: by the key, not by the index of what is live at the spoke, which would be read for each row.
_OPEN_AT = """
SELECT agent, gen, cmd FROM placements
WHERE agent IN (SELECT value FROM json_each(?)) AND +spoke = ? AND gone_ms IS NULL
"""
_OPEN_KILLS = """
SELECT DISTINCT p.agent FROM json_each(?) AS w JOIN agents a ON a.id = w.value
JOIN placements p ON p.agent = a.id AND p.gen <= a.kill_gen AND p.gone_ms IS NULL
"""
