"""The database: SQLite in WAL mode with `synchronous=FULL`, one hub at a time.

At a power cut `synchronous=NORMAL` lost the last commits and FULL none (measured, see `architecture.md`), so FULL it
is; speed comes from grouping (`hub.store.writer`). A lock file beside the database keeps a second hub out.
"""

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from shared.errors import ConfigError

BUSY_TIMEOUT_S: Final = 5.0


def open_engine(file: Path, *, read_only: bool = False) -> sa.Engine:
    """Return an engine whose connections have the durable settings. `BEGIN` is ours to say, not the driver's."""
    engine = sa.create_engine(
        f"sqlite:///{file}", poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    _set_up(engine, read_only=read_only)
    return engine


def open_memory_engine() -> sa.Engine:
    """Return an engine on one in-memory database, for tests and the simulation: same code, no disk."""
    engine = sa.create_engine(
        "sqlite://", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False}
    )
    _set_up(engine, read_only=False)
    return engine


def _set_up(engine: sa.Engine, *, read_only: bool) -> None:
    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "cache_size=-65536",
            "temp_store=MEMORY",
            f"query_only={int(read_only)}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


class HubLock:
    """The lock file of one database; held until `release` or the end of the process."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(f"{database.name}.lock")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode() or "unknown"
            os.close(self._fd)
            raise ConfigError(
                f"another hub (pid {holder}) uses {database}; several hubs need PostgreSQL"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._fd)
