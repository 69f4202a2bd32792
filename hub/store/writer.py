"""One writer thread with group commit: everything that waits goes into one transaction, under one fsync.

A group grows until its commit: what a use case led to in the meantime is in it too.

    await writer.run(use_case)        → a savepoint of its own in the shared transaction
    use case raises                   → only its savepoint is rolled back; the error is the caller's
    the commit fails (disk full, …)   → every caller of that group gets UnavailableError, nothing is stored

A use case runs on the writer's thread and may not wait for anything. A caller that is cancelled while waiting does
not undo what it asked for: like a lost reply, its outcome is unknown to the caller and known to the database.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import OperationalError

from hub.store import audit
from shared.errors import FelloeError, UnavailableError

log = structlog.get_logger()

T = TypeVar("T")
UseCase = Callable[[sa.Connection], T]

# More than one group can take only makes the wait longer: the fsync is long since shared.
MAX_GROUP: Final = 256
MAX_WAITING: Final = 20_000


@dataclass(slots=True)
class _Waiting:
    use_case: UseCase[Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Owns the one connection that writes. `start` once, `stop` once."""

    def __init__(self, engine: sa.Engine, chain: str) -> None:
        self._engine = engine
        self._chain = chain
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._is_stopped = False
        self.failure = ""  # why the last commit failed; empty while all is well

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Finish what waits, then end the thread; who comes later is refused."""
        self._is_stopped = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    async def run(self, use_case: UseCase[T]) -> T:
        """Run a use case durably and return its result; raises what it raises, or UnavailableError."""
        if self._count >= MAX_WAITING:
            raise UnavailableError("the database does not keep up; try again")
        if self._is_stopped:
            raise UnavailableError("the hub is stopping")
        future: asyncio.Future[T] = self._loop.create_future()
        self._count += 1
        self._waiting.put(_Waiting(use_case, future))
        return await future

    def _work(self) -> None:
        connection: sa.Connection | None = None
        while (first := self._waiting.get()) is not None:
            group = [first]
            try:
                connection = connection or self._connect()
                with connection.begin():
                    for waiting in self._growing(group):
                        _run_one(connection, waiting)
                self.failure = ""
            except Exception as error:  # noqa: BLE001 - without this thread nobody would ever get an answer
                self.failure = str(getattr(error, "orig", None) or error)
                log.error("commit_failed", error=self.failure, use_cases=len(group))
                connection = self._give_up(connection, group)
            self._loop.call_soon_threadsafe(self._deliver, group)
        if connection is not None:
            connection.close()

    def _growing(self, group: list[_Waiting]) -> Iterator[_Waiting]:
        """Yield a group that grows by whatever comes before its commit."""
        yield group[0]
        while len(group) < MAX_GROUP and not self._waiting.empty():
            following = self._waiting.get()
            if following is None:
                self._waiting.put(None)  # the end, once this group is committed
                return
            group.append(following)
            yield following

    def _connect(self) -> sa.Connection:
        connection = self._engine.connect()
        with connection.begin():
            audit.take_head(connection, self._chain)
        return connection

    def _give_up(self, connection: sa.Connection | None, group: Sequence[_Waiting]) -> None:
        """Nothing of the group is stored; the next group gets a new connection and reads the audit's head anew."""
        for waiting in group:
            waiting.error = UnavailableError(f"the database refused the commit: {self.failure}")
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _deliver(self, group: Sequence[_Waiting]) -> None:
        self._count -= len(group)
        # The last one first: what use cases led to goes on its way before the answers to their callers are rendered.
        for waiting in reversed(group):
            if waiting.future.done():
                continue
            if waiting.error is not None:
                waiting.future.set_exception(waiting.error)
            else:
                waiting.future.set_result(waiting.result)


def _run_one(connection: sa.Connection, waiting: _Waiting) -> None:
    head = audit.head(connection)
    connection.exec_driver_sql("SAVEPOINT one")
    try:
        waiting.result = waiting.use_case(connection)
    except FelloeError as error:
        waiting.error = error
    except OperationalError:
        raise  # the disk, a lock: SQLite may have rolled back everything by itself
    except Exception as error:  # a fault of ours must not undo the others
        log.exception("use_case_failed")
        waiting.error = error
    if waiting.error is not None:
        connection.exec_driver_sql("ROLLBACK TO one")
        audit.set_head(connection, head)
    connection.exec_driver_sql("RELEASE one")


class Reader:
    """Short indexed reads on the loop's own thread: in WAL mode they never wait for the writer."""

    def __init__(self, engine: sa.Engine) -> None:
        self._connection = engine.connect()

    def run(self, query: UseCase[T]) -> T:
        """Return what a query finds, all of it from one snapshot."""
        with self._connection.begin():
            return query(self._connection)

    def close(self) -> None:
        self._connection.close()
