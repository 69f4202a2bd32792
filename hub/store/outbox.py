"""The outbox: one row per command item, with its exact bytes, until the spoke's signed answer.

An event *accepts* a row: it is not sent again. The outcome *closes* it: the row goes, since by then nothing at the
spoke could need it. Until it is accepted a row is sent again and again, with a growing wait.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import outbox, sent
from shared.ids import sha256
from shared.messages import Command, Kill, Remove, Spawn, Status, Tail
from shared.retry import resend_delay_ms
from shared.trust import encode_item

# The commands that name an agent and a generation.
ABOUT_AGENTS = (Spawn, Kill, Remove, Status, Tail)


class Due(msgspec.Struct, frozen=True):
    """A row that is to be sent now."""

    id: str
    op: str
    item: str
    sent: int


def put(
    connection: sa.Connection, spoke: str, items: Sequence[Command], now_ms: int
) -> dict[str, str]:
    """Add items for one spoke; returns SHA-256 of each one's bytes, by command id."""
    rows: list[dict[str, Any]] = []
    hashes: dict[str, str] = {}
    for item in items:
        raw = encode_item(item)
        hashes[item.id] = sha256(raw)
        agent, gen = (item.agent, item.gen) if isinstance(item, ABOUT_AGENTS) else (None, 0)
        rows.append(
            {
                "id": item.id, "tenant": item.tenant, "spoke": spoke, "op": type(item).__name__.lower(),
                "agent": agent, "gen": gen, "item": raw.decode(), "sent": 0, "next_ms": now_ms, "accepted_ms": None,
            }
        )  # fmt: skip
    bulk.insert(connection, outbox, rows)
    return hashes


def due(connection: sa.Connection, spoke: str, now_ms: int, limit: int) -> list[Due]:
    """Return the rows for a spoke that are to be sent now, oldest first."""
    query = (
        "SELECT id, op, item, sent FROM outbox"
        " WHERE spoke = ? AND accepted_ms IS NULL AND next_ms <= ? ORDER BY id LIMIT ?"
    )
    return [Due(*row) for row in connection.exec_driver_sql(query, (spoke, now_ms, limit))]


def next_due_ms(connection: sa.Connection, spoke: str) -> int | None:
    """Return when the next row for a spoke is to be sent, None when nothing waits."""
    query = "SELECT min(next_ms) FROM outbox WHERE spoke = ? AND accepted_ms IS NULL"
    return connection.exec_driver_sql(query, (spoke,)).scalar()


def note_sent(
    connection: sa.Connection,
    spoke: str,
    envelopes: Sequence[tuple[str, list[str]]],
    rows: Sequence[Due],
    now_ms: int,
) -> None:
    """Keep the proof (envelope hash, command ids) and set when each row would be sent again."""
    proofs = [
        {"sha256": h, "spoke": spoke, "at_ms": now_ms, "items": bulk.texts(ids)}
        for h, ids in envelopes
    ]
    # Ed25519 is deterministic (RFC 8032): the same rows, sent again in the same millisecond, are the same envelope.
    bulk.insert(connection, sent, proofs, again=True)
    again = [
        {"id": row.id, "sent": row.sent + 1, "next_ms": now_ms + resend_delay_ms(row.sent + 1)}
        for row in rows
    ]
    bulk.update(connection, outbox, ("id",), again)


def accept(connection: sa.Connection, spoke: str, ids: Sequence[str], now_ms: int) -> None:
    """Stop sending these rows of `spoke`."""
    if ids:
        connection.exec_driver_sql(_ACCEPT, (now_ms, bulk.texts(ids), spoke))


def close(connection: sa.Connection, spoke: str, ids: Sequence[str]) -> None:
    """Remove rows of `spoke` that were answered for good."""
    if ids:
        query = "DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?)) AND +spoke = ?"
        connection.exec_driver_sql(query, (bulk.texts(ids), spoke))


def close_of_agents(
    connection: sa.Connection, spoke: str, rows: Sequence[tuple[str, int, int]]
) -> None:
    """Remove what waited for generations that are gone from `spoke`: (agent, generation, _)."""
    if rows:
        connection.exec_driver_sql(_CLOSE_OF_AGENTS, (bulk.tuples(rows), spoke))


def spawn_was_sent(connection: sa.Connection, cmd: str) -> bool:
    """Tell whether a spawn row may have left the hub; False proves that no spoke has it."""
    count = connection.exec_driver_sql("SELECT sent FROM outbox WHERE id = ?", (cmd,)).scalar()
    return count is None or count > 0


def has(connection: sa.Connection, agent: str, op: str) -> bool:
    """Tell whether such a command waits for an agent."""
    query = "SELECT 1 FROM outbox WHERE agent = ? AND op = ? LIMIT 1"
    return connection.exec_driver_sql(query, (agent, op)).first() is not None


def reopen(connection: sa.Connection, spoke: str, now_ms: int, *, accepted_too: bool) -> None:
    """Send what is open for a spoke again at once; with a new journal there, also what the old one had accepted."""
    which = "" if accepted_too else " AND accepted_ms IS NULL"
    query = f"UPDATE outbox SET accepted_ms = NULL, next_ms = ? WHERE spoke = ?{which}"  # noqa: S608 - a constant
    connection.exec_driver_sql(query, (now_ms, spoke))


def replace_wanted(connection: sa.Connection, spoke: str) -> None:
    """Remove wanted states that a newer one overrules."""
    query = "DELETE FROM outbox WHERE spoke = ? AND op IN ('pause', 'resume', 'cordon', 'drain')"
    connection.exec_driver_sql(query, (spoke,))


_ACCEPT = """
UPDATE outbox SET accepted_ms = ?
WHERE accepted_ms IS NULL AND id IN (SELECT value FROM json_each(?)) AND +spoke = ?
"""
_CLOSE_OF_AGENTS = """
DELETE FROM outbox WHERE id IN (
  SELECT o.id FROM json_each(?) AS r JOIN outbox o ON o.agent = r.value ->> 0 AND o.gen = r.value ->> 1
  WHERE o.spoke = ?)
"""
