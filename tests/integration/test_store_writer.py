"""The writer: one commit for many, everybody's own fault, and nothing that was said to be stored is ever lost."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from hub.store import audit, events
from hub.store.engine import open_engine
from hub.store.migrate import upgrade
from hub.store.writer import Reader, Writer
from shared.errors import ConflictError, UnavailableError
from shared.lifecycle import State

ROOT = Path(__file__).parents[2]


class Store:
    """A database file, its writer, and what the engine was seen to do."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.engine = open_engine(file)
        self.commits = 0
        self.max_pages = 1_000_000
        event.listen(self.engine, "commit", self._on_commit)
        event.listen(self.engine, "connect", self._on_connect)
        self.writer = Writer(self.engine, "hub")

    def _on_commit(self, _connection: sa.Connection) -> None:
        self.commits += 1

    def _on_connect(self, connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count={self.max_pages}")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        reader = Reader(open_engine(self.file, read_only=True))
        try:
            return reader.run(lambda c: [tuple(row) for row in c.exec_driver_sql(query)])
        finally:
            reader.close()


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[Store]:
    upgrade(folder / "hub.db")
    it = Store(folder / "hub.db")
    it.writer.start()
    try:
        yield it
    finally:
        await it.writer.stop()


def note(text: str, size: int = 0) -> Any:
    """A use case: one event and one audit row."""

    def use_case(connection: sa.Connection) -> str:
        fact = events.NewEvent(
            tenant="default", agent="a", at_ms=1, recorded_ms=1, kind=text, state=State.PENDING, reason="x" * size,
            gen=0, attempt=0, spoke=None,
        )  # fmt: skip
        events.append(connection, [fact])
        entry = audit.Entry(tenant="default", actor="me", action=text, object="a", result="")
        audit.append(connection, [entry], 1)
        return text

    return use_case


def failing(text: str, error: Exception) -> Any:
    def use_case(connection: sa.Connection) -> None:
        note(text)(connection)
        raise error

    return use_case


def twice_the_same_key(connection: sa.Connection) -> None:
    note("broken")(connection)
    for _ in range(2):
        connection.exec_driver_sql("INSERT INTO facts (name, value) VALUES ('x', 'y')")


KINDS = "SELECT kind FROM events ORDER BY id"
ACTIONS = "SELECT n, action FROM audit ORDER BY n"


async def test_many_callers_share_a_few_commits(tmp_path: Path):
    async with store(tmp_path) as it:
        results = await asyncio.gather(*(it.writer.run(note(str(n))) for n in range(500)))
        assert results == [str(n) for n in range(500)]
        assert it.commits < 50
        assert [kind for (kind,) in it.rows(KINDS)] == results


@pytest.mark.parametrize(
    "error", [ConflictError("no"), ValueError("a fault of ours")], ids=["felloe", "bug"]
)
async def test_who_fails_rolls_back_only_itself_and_its_audit(tmp_path: Path, error: Exception):
    async with store(tmp_path) as it:
        results = await asyncio.gather(
            it.writer.run(note("a")), it.writer.run(failing("b", error)), it.writer.run(note("c")),
            return_exceptions=True,
        )  # fmt: skip
        assert results == ["a", error, "c"]
        assert it.rows(KINDS) == [("a",), ("c",)]
        assert it.rows(ACTIONS) == [(1, "a"), (2, "c")]
        assert await it.writer.run(lambda c: audit.first_break(c, "hub")) is None
        assert it.writer.failure == ""


async def test_a_broken_constraint_is_the_fault_of_one(tmp_path: Path):
    async with store(tmp_path) as it:
        results = await asyncio.gather(
            it.writer.run(note("a")), it.writer.run(twice_the_same_key), it.writer.run(note("c")),
            return_exceptions=True,
        )  # fmt: skip
        assert [type(result) for result in results] == [str, sa.exc.IntegrityError, str]
        assert it.rows(KINDS) == [("a",), ("c",)]
        assert it.rows("SELECT * FROM facts") == []
        assert await it.writer.run(lambda c: audit.first_break(c, "hub")) is None


async def test_a_full_disk_is_everybodys_and_passes(tmp_path: Path):
    async with store(tmp_path) as it:
        await it.writer.run(note("before"))
        ((pages,),) = it.rows("PRAGMA page_count")
        await it.writer.run(
            lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}").scalar()
        )
        results = await asyncio.gather(
            *(it.writer.run(note(f"lost {n}", 4_000)) for n in range(20)), return_exceptions=True
        )
        assert {type(result) for result in results} <= {str, UnavailableError}
        refused = [n for n, result in enumerate(results) if isinstance(result, UnavailableError)]
        assert refused
        # The next group has a new connection, without this bound, so the writer itself may be well again.
        assert all("full" in str(results[n]) for n in refused)
        kept = [f"lost {n}" for n in range(20) if n not in refused]
        assert [kind for (kind,) in it.rows(KINDS)] == ["before", *kept]
        assert await it.writer.run(note("after")) == "after"
        assert it.writer.failure == ""
        assert await it.writer.run(lambda c: audit.first_break(c, "hub")) is None


async def test_a_database_that_cannot_be_opened_is_unavailable_and_comes_back(tmp_path: Path):
    async with store(tmp_path) as it:
        it.file.rename(tmp_path / "elsewhere")
        it.file.mkdir()
        with pytest.raises(UnavailableError):
            await it.writer.run(note("a"))
        assert it.writer.failure
        it.file.rmdir()
        (tmp_path / "elsewhere").rename(it.file)
        assert await it.writer.run(note("b")) == "b"
        assert it.rows(KINDS) == [("b",)]


async def test_what_a_cancelled_caller_asked_for_is_stored_all_the_same(tmp_path: Path):
    async with store(tmp_path) as it:
        caller = asyncio.create_task(it.writer.run(note("cancelled")))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await it.writer.run(note("next")) == "next"
        assert it.rows(KINDS) == [("cancelled",), ("next",)]


async def test_stop_finishes_what_waits_and_refuses_what_comes_later(tmp_path: Path):
    async with store(tmp_path) as it:
        callers = [asyncio.create_task(it.writer.run(note(str(n)))) for n in range(300)]
        await asyncio.sleep(0)
        await it.writer.stop()
        assert await asyncio.gather(*callers) == [str(n) for n in range(300)]
        async with asyncio.timeout(5):
            with pytest.raises(UnavailableError):
                await it.writer.run(note("too late"))


async def test_too_many_waiting_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hub.store.writer.MAX_WAITING", 3)
    async with store(tmp_path) as it:
        results = await asyncio.gather(
            *(it.writer.run(note(str(n))) for n in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [str] * 3 + [UnavailableError] * 2
        assert await it.writer.run(note("later")) == "later"


async def test_a_reader_sees_one_snapshot_and_cannot_write(tmp_path: Path):
    async with store(tmp_path) as it:
        await it.writer.run(note("a"))
        reader = Reader(open_engine(it.file, read_only=True))
        try:
            assert reader.run(events.newest_id) == 1
            with pytest.raises(sa.exc.OperationalError, match="readonly"):
                reader.run(note("b"))
            assert reader.run(events.newest_id) == 1
        finally:
            reader.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from hub.store.engine import open_engine
from hub.store.writer import Writer

async def main():
    writer = Writer(open_engine(Path(sys.argv[1])), "hub")
    writer.start()
    async def store(n):
        query = "INSERT INTO facts (name, value) VALUES (?, '')"
        await writer.run(lambda c: c.exec_driver_sql(query, (str(n),)))
        print(n, flush=True)
    for first in range(0, 100_000, 10):
        await asyncio.gather(*(store(n) for n in range(first, first + 10)))

asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_said_to_be_stored(tmp_path: Path):
    upgrade(tmp_path / "hub.db")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "hub.db")], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        process_group=0,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            said = {child.stdout.readline().strip() for _ in range(333)}
        finally:
            child.kill()
        said |= {line.strip() for line in child.stdout if line.endswith("\n")}
    reader = Reader(open_engine(tmp_path / "hub.db", read_only=True))
    try:
        stored = reader.run(
            lambda c: {row[0] for row in c.exec_driver_sql("SELECT name FROM facts")}
        )
    finally:
        reader.close()
    assert len(said) >= 333
    assert said <= stored
