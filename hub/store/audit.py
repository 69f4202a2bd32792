"""The audit: a chain of hashes, written in the same transaction as what it tells of.

Row n holds the hash of row n - 1, so that nothing can be changed, removed or swapped without breaking every row after
it. The head (n and hash) is held by the writer's connection and goes back with a rolled back savepoint. Signed
checkpoints and witnesses come with the issue on trust.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import audit
from shared.ids import sha256

_HEAD: Final = "felloe_audit_head"
_encode = msgspec.json.Encoder().encode


class Head(NamedTuple):
    """The newest row of a chain; n is 0 before the first."""

    chain: str
    n: int
    hash: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to which object, and how it ended; `envelope` is the hash of the signed proof, if there is one."""

    tenant: str
    actor: str
    action: str
    object: str
    result: str
    envelope: str = ""


def take_head(connection: sa.Connection, chain: str) -> None:
    """Read the chain's head into the connection: once, by the writer."""
    query = (
        sa.select(audit.c.n, audit.c.hash)
        .where(audit.c.chain == chain)
        .order_by(audit.c.n.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    set_head(
        connection, Head(chain, row.n, row.hash) if row else Head(chain, 0, sha256(chain.encode()))
    )


def head(connection: sa.Connection) -> Head:
    """Return the head that this connection writes on."""
    return connection.info[_HEAD]


def set_head(connection: sa.Connection, value: Head) -> None:
    """Set the head: after `append`, and back again with a rolled back savepoint."""
    connection.info[_HEAD] = value


def append(connection: sa.Connection, entries: Sequence[Entry], now_ms: int) -> None:
    """Append rows to the chain."""
    chain, n, previous = head(connection)
    rows: list[dict[str, Any]] = []
    for entry in entries:
        n += 1
        row = {
            "chain": chain,
            "n": n,
            "at_ms": now_ms,
            **msgspec.structs.asdict(entry),
            "previous": previous,
        }
        previous = hash_of(row)
        rows.append({**row, "hash": previous})
    bulk.insert(connection, audit, rows)
    set_head(connection, Head(chain, n, previous))


def hash_of(row: dict[str, Any]) -> str:
    """Return the hash of a row: SHA-256 of its values, in the order of the columns, as a JSON array."""
    return sha256(_encode([row[column.name] for column in audit.columns if column.name != "hash"]))


def first_break(connection: sa.Connection, chain: str) -> int | None:
    """Return the n of the first row that does not continue the chain, or None when all of it holds."""
    previous, expected = sha256(chain.encode()), 1
    for row in connection.execute(
        sa.select(audit).where(audit.c.chain == chain).order_by(audit.c.n)
    ).mappings():
        if (
            row["n"] != expected
            or row["previous"] != previous
            or hash_of(dict(row)) != row["hash"]
        ):
            return expected
        previous, expected = row["hash"], expected + 1
    return None
