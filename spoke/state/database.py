"""The file `state.db`: one writer thread, and every change that waits shares the next commit.

A durable commit costs one fsync, whether it holds one change or a thousand. So callers hand in changes; the thread
takes all that have gathered while the last fsync ran, applies them in their order in one transaction, commits, and
only then tells the callers. Idle, a change is committed alone and at once; under load they group by themselves; there
is no timer.

A change that fails must not take its neighbours with it: the group is rolled back and each is committed by itself.
When the disk is full, nothing of any change is there and every caller is told. A caller that is cancelled while it
waits changes nothing: its change is committed whole, or not at all if the process ends first.

`synchronous=FULL`, because with NORMAL a power cut loses the last commits (measured, `architecture.md`).
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from shared.errors import ConfigError, FelloeError, UnavailableError
from spoke.state.lock import FolderLock

log = structlog.get_logger()

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

# Far more than can wait for one fsync; beyond it the caller is told instead of the memory filling up.
_MOST_WAITING: Final = 65_536
_MOST_TOGETHER: Final = 4_096

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS journal (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    incarnation INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    newest_ms INTEGER NOT NULL DEFAULT 0,
    trust_version INTEGER NOT NULL DEFAULT 0,
    head_seq INTEGER NOT NULL DEFAULT 0,
    rev INTEGER NOT NULL DEFAULT 0,
    witness_chain TEXT NOT NULL DEFAULT '',
    witness_n INTEGER NOT NULL DEFAULT 0,
    witness_hash TEXT NOT NULL DEFAULT '',
    host TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT OR IGNORE INTO journal (one) VALUES (1);
CREATE TABLE IF NOT EXISTS attempts (
    agent TEXT NOT NULL,
    gen INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    cmd TEXT NOT NULL,
    cmd_sha256 TEXT NOT NULL,
    item BLOB NOT NULL,
    retries INTEGER NOT NULL,
    handle BLOB,
    exit BLOB,
    PRIMARY KEY (agent, gen, attempt)
) STRICT;
"""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    change: Change[Any]
    then: Callable[[Any], None] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Done:
    waiting: _Waiting
    result: Any
    error: Exception | None


class Database:
    """The one connection that writes, and one that reads. Built by `open`, ended by `close`."""

    def __init__(self, lock: FolderLock, writes: sqlite3.Connection, reads: sqlite3.Connection):
        self._lock = lock
        self._writes = writes
        self._reads = reads
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)
        self._closed = False
        self._thread.start()

    @classmethod
    def open(cls, folder: Path) -> "Database":
        """Claim `folder`, made if needed, and open its database; raises ConfigError.

        Called once, when the daemon starts: it touches the disk in the caller's thread.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"the state folder {folder}: {error.strerror}") from error
        lock = FolderLock.take(folder)
        try:
            file = folder / "state.db"
            writes = _connect(file)
            _migrate(writes, file)
            return cls(lock, writes, _connect(file))
        except sqlite3.Error as error:
            lock.free()
            raise ConfigError(f"the state folder {folder}: {error}") from error
        except BaseException:
            lock.free()
            raise

    async def run(self, change: Change[T], then: Callable[[T], None] | None = None) -> T:
        """Return the result of `change` once it is durable. Raises UnavailableError when it could not be stored.

        `then` is called with the result in the event loop, even if the caller has gone: for what mirrors the disk.
        """
        if self._closed:
            raise UnavailableError("the state folder is closed")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(change, then, loop, loop.create_future())
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise UnavailableError("the state folder cannot keep up") from None
        return await waiting.future

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query over what is committed. In the caller's thread: for small or rare queries."""
        return self._reads.execute(query, values).fetchall()

    def close(self) -> None:
        """Commit what waits, end the thread, give the folder up. Of no effect the second time."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._reads.close()
        self._writes.close()
        self._lock.free()

    # --- the writer thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            group, last = self._gather()
            if group:
                _tell(self._commit(group))
            if last:
                return

    def _gather(self) -> tuple[list[_Waiting], bool]:
        """Wait for one change, then take all that are there; the second value says that it was the last group."""
        group: list[_Waiting] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == _MOST_TOGETHER:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: Sequence[_Waiting]) -> list[_Done]:
        try:
            results = self._together(group)
        except Exception as error:  # noqa: BLE001 - whatever a change raises is its caller's to see
            if len(group) == 1:
                return [_Done(group[0], None, _as_ours(error))]
            return [done for waiting in group for done in self._commit([waiting])]
        return [_Done(w, r, None) for w, r in zip(group, results, strict=True)]

    def _together(self, group: Sequence[_Waiting]) -> list[Any]:
        self._writes.execute("BEGIN IMMEDIATE")
        try:
            results = [waiting.change(self._writes) for waiting in group]
            self._writes.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already.
            if self._writes.in_transaction:
                self._writes.execute("ROLLBACK")
            raise
        return results


def _tell(group: Sequence[_Done]) -> None:
    """Wake the callers, with one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[_Done]] = {}
    for done in group:
        loops.setdefault(done.waiting.loop, []).append(done)
    for loop, its in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, its)
        except RuntimeError:  # the loop is closed: nobody waits any more, what was committed stays
            log.debug("state_caller_gone", changes=len(its))


def _resolve(group: Sequence[_Done]) -> None:
    for done in group:
        waiting = done.waiting
        if done.error is None and waiting.then is not None:
            waiting.then(done.result)
        if waiting.future.done():  # cancelled
            continue
        if done.error is None:
            waiting.future.set_result(done.result)
        else:
            waiting.future.set_exception(done.error)


def _as_ours(error: Exception) -> Exception:
    if isinstance(error, FelloeError) or not isinstance(error, sqlite3.OperationalError):
        return error
    ours = UnavailableError(
        f"the state folder could not store a change, nothing of it is there: {error}"
    )
    ours.__cause__ = error
    return ours


def _connect(file: Path) -> sqlite3.Connection:
    # The first connection is handed to the writer thread; the other stays in the event loop's.
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _SCHEMA_VERSION:
        raise ConfigError(
            f"{file} was written by a newer felloe (schema {version}); upgrade this one"
        )
    if version < _SCHEMA_VERSION:
        connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")
