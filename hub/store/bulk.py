"""Many rows in one statement, as one JSON argument.

`executemany` steps through the rows one by one and lets go of the GIL at each; under load, waiting to get it back
costs the writer thread more than the disk does (4.2 ms against 0.67 ms a batch). One statement over `json_each` lets
go once. Blobs do not travel in JSON, so what is bulk written is text and integers.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa

_encode = msgspec.json.Encoder().encode

Row = Mapping[str, Any]


def insert(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], *, again: bool = False
) -> None:
    """Insert rows that all have the keys of the first one; with `again`, those that are there already are left."""
    if rows:
        columns = tuple(rows[0])
        query = _insert_sql(table.name, columns, "OR IGNORE " if again else "")
        connection.exec_driver_sql(query, (_pack(columns, rows),))


def update(
    connection: sa.Connection, table: sa.Table, keys: tuple[str, ...], rows: Sequence[Row]
) -> None:
    """Update by key: every other key of the first row is a column to set."""
    if rows:
        columns = tuple(rows[0])
        connection.exec_driver_sql(_update_sql(table.name, keys, columns), (_pack(columns, rows),))


def texts(values: Sequence[str]) -> str:
    """Return the argument for `IN (SELECT value FROM json_each(?))`."""
    return _encode(values).decode()


def tuples(rows: Sequence[tuple[Any, ...]]) -> str:
    """Return the argument for `json_each(?)` over rows of positions."""
    return _encode(rows).decode()


def _pack(columns: tuple[str, ...], rows: Sequence[Row]) -> str:
    return _encode([[row[column] for column in columns] for row in rows]).decode()


@lru_cache(maxsize=64)
def _insert_sql(table: str, columns: tuple[str, ...], how: str) -> str:
    return f"INSERT {how}INTO {table} ({', '.join(columns)}) SELECT {_values(columns)} FROM json_each(?)"  # noqa: S608 - our names


@lru_cache(maxsize=64)
def _update_sql(table: str, keys: tuple[str, ...], columns: tuple[str, ...]) -> str:
    sets = ", ".join(f"{c} = r.{c}" for c in columns if c not in keys)
    same = " AND ".join(f"{table}.{k} = r.{k}" for k in keys)
    source = f"SELECT {_values(columns)} FROM json_each(?)"  # noqa: S608 - our names
    return f"UPDATE {table} SET {sets} FROM ({source}) AS r WHERE {same}"  # noqa: S608 - our names


def _values(columns: tuple[str, ...]) -> str:
    return ", ".join(
        f"json_extract(value, '$[{n}]') AS {column}" for n, column in enumerate(columns)
    )
