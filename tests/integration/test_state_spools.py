"""Spools: what was written can be read from any position, and what is not there is told from what is empty."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.messages import LogStream
from spoke.state.handles import Key
from spoke.state.spools import SpoolMissingError, Spools, SpoolTruncatedError
from tests.helpers.builders import NOW, new_id

DAY = 86_400_000


def written(spools: Spools, key: Key, data: bytes = b"0123456789", name: str = "out") -> Path:
    folder = spools.folder(*key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def aged(spools: Spools, key: Key, days: int) -> None:
    folder = spools.folder(*key)
    when = (NOW - days * DAY) / 1000
    for path in (*folder.iterdir(), folder):
        os.utime(path, (when, when))


def test_a_folder_is_named_and_not_made(tmp_path: Path) -> None:
    assert Spools(tmp_path).folder("a", 2, 3) == tmp_path / "spools" / "a" / "2" / "3"
    assert list(tmp_path.iterdir()) == []


def test_any_piece_can_be_read(tmp_path: Path) -> None:
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    written(spools, key)
    assert spools.read(*key, LogStream.OUT, 0, 100) == b"0123456789"
    assert spools.read(*key, LogStream.OUT, 3, 4) == b"3456"
    assert spools.read(*key, LogStream.OUT, 10, 4) == b""


def test_stderr_has_its_own_positions(tmp_path: Path) -> None:
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    written(spools, key)
    written(spools, key, b"oops", "err")
    assert (spools.size(*key), spools.size(*key, LogStream.ERR)) == (10, 4)
    assert spools.read(*key, LogStream.ERR, 0, 100) == b"oops"


def test_empty_missing_and_truncated_are_three_things(tmp_path: Path) -> None:
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    assert spools.size(*key) is None
    with pytest.raises(SpoolMissingError):
        spools.read(*key, LogStream.OUT, 0, 1)
    path = written(spools, key, b"")
    assert spools.size(*key) == 0
    assert spools.read(*key, LogStream.OUT, 0, 1) == b""
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    with pytest.raises(SpoolTruncatedError) as caught:
        spools.read(*key, LogStream.OUT, 9, 1)
    assert (caught.value.size, caught.value.code) == (4, "spool_truncated")


def test_a_link_in_the_place_of_a_spool_is_not_followed(tmp_path: Path) -> None:
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    written(spools, key).unlink()
    (spools.folder(*key) / "out").symlink_to("/etc/hostname")
    with pytest.raises(SpoolMissingError):
        spools.read(*key, LogStream.OUT, 0, 100)


def test_attempts_are_those_with_a_folder(tmp_path: Path) -> None:
    spools, agent = Spools(tmp_path), new_id()
    for attempt in (10, 2, 1):
        written(spools, Key(agent, 1, attempt))
    written(spools, Key(agent, 2, 7))
    assert spools.attempts(agent, 1) == [1, 2, 10]
    assert spools.attempts(new_id(), 1) == []


def test_what_is_old_and_not_alive_is_dropped(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    old, fresh, silent = (Key(new_id(), 1, 1) for _ in range(3))
    for key, days in ((old, 8), (fresh, 6), (silent, 8)):
        written(spools, key)
        aged(spools, key, days)
    assert spools.drop_older_than(NOW, 7 * DAY, alive={silent}) == [old]
    assert (spools.size(*old), spools.size(*fresh), spools.size(*silent)) == (None, 10, 10)
    assert not (tmp_path / "spools" / old.agent).exists()


def test_dropping_one_attempt_keeps_the_others(tmp_path: Path) -> None:
    spools, agent = Spools(tmp_path), new_id()
    for attempt in (1, 2):
        written(spools, Key(agent, 1, attempt))
    for _ in range(2):
        spools.drop(Key(agent, 1, 1))
    assert spools.attempts(agent, 1) == [2]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_spool(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """An agent without isolation may put anything there; to open a FIFO waits for its writer."""
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    path = written(spools, key)
    path.unlink()
    make(path)
    with pytest.raises(SpoolMissingError):
        spools.read(*key, LogStream.OUT, 0, 1)


def test_a_folder_of_somebody_else_disturbs_no_sweep(tmp_path: Path) -> None:
    spools, key = Spools(tmp_path), Key(new_id(), 1, 1)
    written(spools, key)
    aged(spools, key, 2)
    (tmp_path / "spools" / key.agent / "lost+found").mkdir()
    assert spools.drop_older_than(NOW, DAY) == [key]
