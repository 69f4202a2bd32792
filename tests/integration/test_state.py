"""The state folder on a real disk: what is durable, in which order, for whom."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shared.errors import ConfigError, NotFoundError, UnavailableError
from shared.messages import Exit, ExitKind
from spoke.state.database import Database
from spoke.state.folder import StateFolder
from spoke.state.handles import Intent, Key
from spoke.state.host import host_id
from tests.helpers.builders import ZEROS, new_id

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    opened = StateFolder.open(tmp_path / "state")
    yield opened
    opened.close()


def intent(attempt: int = 1, *, agent: str = "", fence: int = 1) -> Intent:
    return Intent(
        agent=agent or new_id(),
        gen=1,
        attempt=attempt,
        fence=fence,
        cmd=new_id(),
        cmd_sha256=ZEROS,
        item=b'{"op":"spawn"}',
        retries=0,
    )


def key(of: Intent) -> Key:
    return Key(of.agent, of.gen, of.attempt)


def exited(code: int) -> Exit:
    return Exit(kind=ExitKind.EXITED, code=code, started_ms=1, ended_ms=2, output_bytes=3)


# --- the journal -------------------------------------------------------------------------------------


async def test_a_new_journal_knows_nothing(folder: StateFolder) -> None:
    facts = msgspec.structs.asdict(folder.journal.facts)
    assert set(facts.values()) == {0, ""}


async def test_what_was_saved_is_there_after_the_next_start(tmp_path: Path) -> None:
    first = StateFolder.open(tmp_path)
    await first.journal.save(incarnation=3, epoch=7, head_seq=99, host="h")
    first.close()
    second = StateFolder.open(tmp_path)
    facts = second.journal.facts
    second.close()
    assert (facts.incarnation, facts.epoch, facts.head_seq, facts.host) == (3, 7, 99, "h")


@pytest.mark.parametrize("name", ["epoch", "newest_ms", "trust_version"])
async def test_some_facts_never_go_back(folder: StateFolder, name: str) -> None:
    for value, expected in ((5, 5), (3, 5), (6, 6)):
        facts = await folder.journal.save(**{name: value})  # pyright: ignore[reportArgumentType]
        assert getattr(facts, name) == getattr(folder.journal.facts, name) == expected


async def test_a_new_incarnation_may_begin_at_event_0(folder: StateFolder) -> None:
    await folder.journal.save(incarnation=1, head_seq=50)
    await folder.journal.save(incarnation=2, head_seq=0)
    assert (folder.journal.facts.incarnation, folder.journal.facts.head_seq) == (2, 0)


async def test_a_witness_never_goes_back_within_its_chain(folder: StateFolder) -> None:
    journal = folder.journal
    await journal.save(witness_chain="c", witness_n=5, witness_hash="five")
    await journal.save(witness_chain="c", witness_n=4, witness_hash="four")
    await journal.save(witness_chain="c", witness_n=5, witness_hash="another five")
    assert (journal.facts.witness_n, journal.facts.witness_hash) == (5, "five")
    await journal.save(witness_chain="c", witness_n=6, witness_hash="six")
    assert (journal.facts.witness_n, journal.facts.witness_hash) == (6, "six")


async def test_another_chain_is_another_witness(folder: StateFolder) -> None:
    journal = folder.journal
    await journal.save(witness_chain="c", witness_n=5, witness_hash="five")
    await journal.save(witness_chain="d", witness_n=1, witness_hash="one")
    facts = journal.facts
    assert (facts.witness_chain, facts.witness_n, facts.witness_hash) == ("d", 1, "one")


async def test_half_a_witness_is_refused(folder: StateFolder) -> None:
    with pytest.raises(ValueError, match="a witness is"):
        await folder.journal.save(witness_n=5)


async def test_the_facts_follow_the_disk_even_if_who_saved_them_has_gone(
    folder: StateFolder,
) -> None:
    saving = asyncio.ensure_future(folder.journal.save(epoch=4))
    await asyncio.sleep(0)
    saving.cancel()
    await folder.journal.save(rev=1)
    assert (folder.journal.facts.epoch, folder.journal.facts.rev) == (4, 1)


# --- handles -----------------------------------------------------------------------------------------


async def test_an_attempt_goes_from_intent_to_handle_to_exit(folder: StateFolder) -> None:
    handles = folder.handles
    of = intent()
    await handles.intend([of])
    (record,) = handles.all()
    assert (record.key, record.item, record.handle, record.exit) == (key(of), of.item, None, None)
    await handles.hold([(key(of), b'{"pid":1}')])
    await handles.ended([(key(of), exited(7))])
    (record,) = handles.all()
    assert (record.handle, record.exit) == (b'{"pid":1}', exited(7))
    for _ in range(2):
        await handles.forget([key(of)])
    assert handles.all() == []


async def test_an_attempt_that_was_handed_back_is_intended_from_nothing(
    folder: StateFolder,
) -> None:
    of = intent()
    await folder.handles.intend([of])
    await folder.handles.hold([(key(of), b"old")])
    again = msgspec.structs.replace(of, fence=2)
    await folder.handles.intend([again])
    (record,) = folder.handles.all()
    assert (record.fence, record.handle, record.exit) == (2, None, None)


async def test_the_first_word_about_an_end_stays(folder: StateFolder) -> None:
    of = intent()
    await folder.handles.intend([of])
    for code in (7, 9):
        await folder.handles.ended([(key(of), exited(code))])
    assert folder.handles.all()[0].exit == exited(7)


async def test_a_handle_without_an_intent_is_refused_and_nothing_of_its_batch_stays(
    folder: StateFolder,
) -> None:
    of = intent()
    await folder.handles.intend([of])
    with pytest.raises(NotFoundError):
        await folder.handles.hold([(key(of), b"x"), (Key("nobody", 1, 1), b"y")])
    assert folder.handles.all()[0].handle is None


async def test_records_come_in_the_order_of_their_intents(folder: StateFolder) -> None:
    wanted = [intent(attempt) for attempt in (3, 1, 2)]
    await folder.handles.intend(wanted)
    assert [record.key for record in folder.handles.all()] == [key(one) for one in wanted]


# --- one commit for many -----------------------------------------------------------------------------


async def test_what_waits_shares_a_commit(folder: StateFolder, tmp_path: Path) -> None:
    database = folder._database
    commits: list[str] = []
    database._writes.set_trace_callback(
        lambda sql: commits.append(sql) if sql == "COMMIT" else None
    )
    of = [intent() for _ in range(500)]
    await asyncio.gather(*(folder.handles.intend([one]) for one in of))
    assert len(folder.handles.all()) == 500
    assert 1 <= len(commits) < 50


async def test_a_change_that_fails_takes_nobody_with_it(folder: StateFolder) -> None:
    good = [intent() for _ in range(5)]
    results = await asyncio.gather(
        folder.handles.intend(good[:2]),
        folder.handles.hold([(Key("nobody", 1, 1), b"x")]),
        folder.handles.intend(good[2:]),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), NotFoundError, type(None)]
    assert len(folder.handles.all()) == 5


async def test_a_cancelled_change_is_there_whole(folder: StateFolder) -> None:
    both = [intent(), intent()]
    changing = asyncio.ensure_future(folder.handles.intend(both))
    await asyncio.sleep(0)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    await folder.handles.forget([])
    assert len(folder.handles.all()) == 2


async def test_changes_are_applied_in_the_order_they_came(folder: StateFolder) -> None:
    await asyncio.gather(*(folder.journal.save(head_seq=n) for n in range(200)))
    assert folder.journal.facts.head_seq == 199


async def test_a_full_disk_is_said_and_leaves_nothing_half_written(folder: StateFolder) -> None:
    (pages,) = folder._database.read("PRAGMA page_count")[0]
    await folder._database.run(
        lambda c: c.execute(f"PRAGMA max_page_count={pages + 2}").fetchall()
    )
    many = [msgspec.structs.replace(intent(), item=b"x" * 60_000) for _ in range(3)]
    with pytest.raises(UnavailableError, match="full"):
        await folder.handles.intend(many)
    assert folder.handles.all() == []
    await folder._database.run(lambda c: c.execute("PRAGMA max_page_count=100000").fetchall())
    await folder.handles.intend(many)
    assert len(folder.handles.all()) == 3


async def test_after_the_close_nothing_is_taken(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path)
    for _ in range(2):
        folder.close()
    with pytest.raises(UnavailableError):
        await folder.journal.save(epoch=1)


async def test_what_waits_at_the_close_is_committed(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path)
    saving = [asyncio.ensure_future(folder.journal.save(rev=n)) for n in range(1, 100)]
    await asyncio.sleep(0)
    folder.close()
    await asyncio.gather(*saving)
    again = StateFolder.open(tmp_path)
    assert again.journal.facts.rev == 99
    again.close()


async def test_the_event_loop_does_not_wait_for_the_disk(folder: StateFolder) -> None:
    held, at_it = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> bool:
        at_it.set()
        return held.wait(5)

    changing = asyncio.ensure_future(folder._database.run(slow))
    await asyncio.sleep(0)
    assert at_it.wait(5)
    started = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - started < 1
    assert not changing.done()
    held.set()
    assert await changing


# --- kill -9 -----------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from spoke.state.folder import StateFolder
from tests.integration.test_state import intent

async def write():
    folder = StateFolder.open(Path(sys.argv[1]))
    n = 0
    while True:
        n += 1
        await asyncio.gather(folder.journal.save(head_seq=n), folder.handles.intend([intent(), intent()]))
        print(n, flush=True)

asyncio.run(write())
"""


def test_what_was_said_to_be_durable_survives_a_kill(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        try:
            said = 0
            while said < 20:
                said = int(writer.stdout.readline())
        finally:
            writer.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in writer.stdout.read().split("\n")[:-1] if line)])
    folder = StateFolder.open(tmp_path)
    found, records = folder.journal.facts.head_seq, len(folder.handles.all())
    folder.close()
    assert found in {said, said + 1}
    assert records in {2 * said, 2 * said + 2}


# --- one daemon per folder ---------------------------------------------------------------------------


def test_a_second_daemon_is_told_who_has_the_folder(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path)
    try:
        with pytest.raises(ConfigError, match=f"pid {os.getpid()} on "):
            StateFolder.open(tmp_path)
    finally:
        folder.close()
    StateFolder.open(tmp_path).close()


def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(ConfigError, match=f"pid {writer.pid} on "):
            StateFolder.open(tmp_path)
        writer.kill()
    StateFolder.open(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="state folder"):
        StateFolder.open(tmp_path / "file" / "state")


def test_a_database_that_is_none_is_a_wrong_setting_and_frees_the_lock(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(ConfigError, match="not a database"):
            StateFolder.open(tmp_path)


def test_a_database_of_a_newer_felloe_is_left_alone(tmp_path: Path) -> None:
    StateFolder.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ConfigError, match="newer felloe"):
        StateFolder.open(tmp_path)


def test_the_database_is_durable_and_the_folder_private(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state")
    (mode,) = database._writes.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = database._writes.execute("PRAGMA synchronous").fetchone()
    database.close()
    assert (mode, synchronous) == ("wal", 2)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


# --- which host this is ------------------------------------------------------------------------------


def test_the_hosts_own_id_is_taken(tmp_path: Path) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef" * 2 + "\n")
    assert host_id(tmp_path, machine) == "0123456789abcdef" * 2
    assert not (tmp_path / "host").exists()


@pytest.mark.parametrize("text", [None, "", "uninitialized\n", "0" * 31])
def test_a_host_without_an_id_gets_one_that_stays(tmp_path: Path, text: str | None) -> None:
    machine = tmp_path / "machine-id"
    if text is not None:
        machine.write_text(text)
    made = host_id(tmp_path, machine)
    assert len(made) == 32
    assert host_id(tmp_path, machine) == made
