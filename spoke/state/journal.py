"""Who this spoke is, and how far it has come: a handful of facts in one row.

Some of them must never go back, whatever order writers come in: the epoch (or an old daemon could write again), the
newest signed time (or an old clock could judge expiry) and the audit witness (or a hub could rewrite its chain). The
rule is in the SQL, so that no caller can forget it. A new chain is a new witness and may begin at any number; within a
chain, number and hash move together.
"""

import sqlite3
from typing import Final, TypedDict, Unpack

import msgspec

from spoke.state.database import Database


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed. Times are Unix milliseconds; "" and 0 mean that it is not known yet."""

    incarnation: int
    epoch: int
    newest_ms: int
    trust_version: int
    head_seq: int
    rev: int
    witness_chain: str
    witness_n: int
    witness_hash: str
    host: str


class Changes(TypedDict, total=False):
    """Any of the facts; the three of the witness only together."""

    incarnation: int
    epoch: int
    newest_ms: int
    trust_version: int
    head_seq: int
    rev: int
    witness_chain: str
    witness_n: int
    witness_hash: str
    host: str


_NAMES: Final = Facts.__struct_fields__
_READ: Final = f"SELECT {', '.join(_NAMES)} FROM journal"  # noqa: S608 - our own field names
_NEVER_LOWER: Final = frozenset({"epoch", "newest_ms", "trust_version"})
_WITNESS: Final = frozenset({"witness_chain", "witness_n", "witness_hash"})


class Journal:
    """The facts in memory and on disk. `facts` never shows what is not durable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._facts = _facts(database.read(_READ)[0])

    @property
    def facts(self) -> Facts:
        return self._facts

    async def save(self, **changes: Unpack[Changes]) -> Facts:
        """Store `changes` and return what holds then, once it is durable; what may not go back stays as it was."""
        if _WITNESS & changes.keys() not in (_WITNESS, frozenset()):
            raise ValueError("a witness is a chain, a number and a hash")
        return await self._database.run(lambda connection: _apply(connection, changes), self._take)

    def _take(self, facts: Facts) -> None:
        self._facts = facts


def _apply(connection: sqlite3.Connection, changes: Changes) -> Facts:
    parts = [_assignment(name) for name in changes if name not in _WITNESS]
    if parts:
        connection.execute(f"UPDATE journal SET {', '.join(parts)}", changes)  # noqa: S608 - our own names
    if "witness_n" in changes:
        connection.execute(
            "UPDATE journal SET witness_chain = :witness_chain, witness_n = :witness_n,"
            " witness_hash = :witness_hash WHERE witness_chain <> :witness_chain OR witness_n < :witness_n",
            changes,
        )
    return _facts(connection.execute(_READ).fetchone())


def _assignment(name: str) -> str:
    return f"{name} = max({name}, :{name})" if name in _NEVER_LOWER else f"{name} = :{name}"


def _facts(row: tuple[object, ...]) -> Facts:
    return msgspec.convert(dict(zip(_NAMES, row, strict=True)), Facts)
