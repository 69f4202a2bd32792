"""Which attempts this spoke has begun, how to find their sandboxes again, and how they ended.

Each step of an attempt is durable before the next one happens: the *intent* before anything is started, the *handle*
before the agent may run, the *exit* before the queue hears of it. A daemon that finds an intent without a handle may
prove that the agent never ran; one that finds a handle adopts; one that finds an exit only has to report it.

The intent holds the signed Spawn item: together with attempt and fence it is enough to go on without Valkey.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from shared.errors import NotFoundError
from shared.messages import Exit
from spoke.state.database import Database


class Key(NamedTuple):
    """One attempt."""

    agent: str
    gen: int
    attempt: int


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before an attempt is begun; `item` is the exact signed Spawn, `retries` how many were used up."""

    agent: str
    gen: int
    attempt: int
    fence: int
    cmd: str
    cmd_sha256: str
    item: bytes
    retries: int


class Record(Intent, frozen=True, kw_only=True):
    """An intent, and how far it came. `handle` is opaque here: the spawner's, encoded by the caller."""

    handle: bytes | None
    exit: Exit | None

    @property
    def key(self) -> Key:
        return Key(self.agent, self.gen, self.attempt)


_INTEND: Final = """
INSERT INTO attempts (agent, gen, attempt, fence, cmd, cmd_sha256, item, retries) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (agent, gen, attempt) DO UPDATE SET fence = excluded.fence, cmd = excluded.cmd,
    cmd_sha256 = excluded.cmd_sha256, item = excluded.item, retries = excluded.retries, handle = NULL, exit = NULL
"""
_WHERE: Final = "WHERE agent = ? AND gen = ? AND attempt = ?"
_HOLD: Final = f"UPDATE attempts SET handle = ? {_WHERE}"  # noqa: S608 - our own text
_ENDED: Final = f"UPDATE attempts SET exit = coalesce(exit, ?) {_WHERE}"  # noqa: S608 - our own text
_FORGET: Final = f"DELETE FROM attempts {_WHERE}"  # noqa: S608 - our own text
_ALL: Final = """
SELECT agent, gen, attempt, fence, cmd, cmd_sha256, item, retries, handle, exit FROM attempts ORDER BY rowid
"""

_encode_exit = msgspec.json.Encoder().encode
_decode_exit = msgspec.json.Decoder(Exit).decode


class Handles:
    """Every method is durable when it returns, takes many at once in one commit, and may be repeated."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def intend(self, intents: Sequence[Intent]) -> None:
        """Record what is about to be begun. An attempt that was handed back is intended anew, from nothing."""
        rows = [msgspec.structs.astuple(intent) for intent in intents]
        await self._database.run(lambda connection: _run_many(connection, _INTEND, rows))

    async def hold(self, handles: Sequence[tuple[Key, bytes]]) -> None:
        """Record how to find sandboxes again; raises NotFoundError, with nothing recorded, without an intent."""
        rows = [(handle, key) for key, handle in handles]
        await self._database.run(lambda connection: _update(connection, _HOLD, rows))

    async def ended(self, exits: Sequence[tuple[Key, Exit]]) -> None:
        """Record how attempts ended; the first word stays. Raises NotFoundError as `hold` does."""
        rows = [(_encode_exit(end), key) for key, end in exits]
        await self._database.run(lambda connection: _update(connection, _ENDED, rows))

    async def forget(self, keys: Sequence[Key]) -> None:
        """Drop records. Of no effect where there is none."""
        await self._database.run(lambda connection: _run_many(connection, _FORGET, keys))

    def all(self) -> list[Record]:
        """Return what is recorded, oldest intent first. Reads the disk: for the start and for reconciling."""
        return [_record(row) for row in self._database.read(_ALL)]


def _run_many(
    connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    connection.executemany(statement, rows)


def _update(
    connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[bytes, Key]]
) -> None:
    for value, key in rows:
        if connection.execute(statement, (value, *key)).rowcount == 0:
            raise NotFoundError(
                f"no intent of attempt {key.attempt} of {key.agent}, generation {key.gen}"
            )


def _record(row: tuple[object, ...]) -> Record:
    *fields, end = row
    names = Record.__struct_fields__
    found = dict(zip(names, (*fields, None), strict=True))
    record = msgspec.convert(found, Record)
    if isinstance(end, bytes):
        return msgspec.structs.replace(record, exit=_decode_exit(end))
    return record
