"""Cgroups: what is asked of the kernel under version 2 (on a copy of its files) and really enforced under version 1."""

from pathlib import Path

import pytest

from shared.messages import Limits
from spoke.spawners.cgroups import Cgroups, members, out_of_memory

LIMITS = Limits(cpu_milli=500, memory_bytes=4096, pids=10)


def unified(folder: Path, *delegated: str, enabled: str = "memory pids cpu") -> Path:
    """Files as the kernel has them, where `enabled` is what `cgroup.subtree_control` admits to."""
    (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for path in (folder, *(folder / one for one in delegated)):
        path.mkdir(parents=True, exist_ok=True)
        (path / "cgroup.procs").touch()
        for base in (path, path / "felloe"):
            base.mkdir(parents=True, exist_ok=True)
            (base / "cgroup.subtree_control").write_text(enabled)
    return folder


class Listening(Cgroups):
    """Puts the files that a kernel would have into what is made."""

    def make(self, name: str) -> tuple[str, ...]:
        for path in self.paths(name):
            Path(path).mkdir()
            for file in (
                "memory.max",
                "memory.swap.max",
                "memory.oom.group",
                "pids.max",
                "cpu.max",
            ):
                Path(path, file).touch()
        return super().make(name)


def frozen_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers a write to `cgroup.subtree_control` by itself: a file would just take the text."""
    original = Path.write_text
    monkeypatch.setattr(
        Path,
        "write_text",
        lambda self, text: None if self.name == "cgroup.subtree_control" else original(self, text),
    )


@pytest.mark.parametrize(
    ("own", "where"),
    [
        ("0::/user.slice/felloe.service\n", "user.slice/felloe.service/felloe"),
        ("0::/user.slice/felloe.service/daemon\n", "user.slice/felloe.service/felloe"),
    ],
)
def test_a_users_cgroups_are_where_they_were_delegated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, where: str
) -> None:
    mount = unified(tmp_path, "user.slice/felloe.service")
    frozen_writes(monkeypatch)
    found = Cgroups.find(is_root=False, mount=mount, own=own)
    assert found.controllers == {"memory", "pids", "cpu"}
    assert found.paths("a-1-1") == (str(mount / where / "a-1-1"),)


def test_roots_cgroups_are_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = unified(tmp_path)
    frozen_writes(monkeypatch)
    found = Cgroups.find(is_root=True, mount=mount, own="0::/init.scope\n")
    assert found.paths("a-1-1") == (str(mount / "felloe" / "a-1-1"),)


def test_a_controller_that_was_not_delegated_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = unified(tmp_path, enabled="memory pids")
    frozen_writes(monkeypatch)
    assert Cgroups.find(is_root=True, mount=mount, own="").controllers == {"memory", "pids"}


def test_a_subtree_into_which_nothing_can_be_moved_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = unified(tmp_path)
    frozen_writes(monkeypatch)
    (mount / "cgroup.procs").unlink()
    assert Cgroups.find(is_root=True, mount=mount, own="").controllers == frozenset()


def test_a_host_without_cgroups_gives_none(tmp_path: Path) -> None:
    found = Cgroups.find(is_root=False, mount=tmp_path, own="")
    assert (found.controllers, found.paths("a-1-1")) == (frozenset(), ())
    assert found.make("a-1-1") == ()


def test_a_folder_that_is_no_hierarchy_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    assert Cgroups.find(is_root=True, mount=tmp_path, own="").controllers == frozenset()
    assert list((tmp_path / "memory").iterdir()) == []


def test_the_bounds_of_version_2(tmp_path: Path) -> None:
    groups = Listening(dict.fromkeys(("memory", "pids", "cpu"), tmp_path), unified=True)
    (path,) = groups.make("a-1-1")
    groups.bound("a-1-1", LIMITS)
    found = {file.name: file.read_text() for file in Path(path).iterdir()}
    assert found == {
        "memory.max": "4096",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "12",
        "cpu.max": "50000 100000",
    }


def test_more_cpu_than_there_is_is_no_bound(tmp_path: Path) -> None:
    groups = Listening({"cpu": tmp_path}, unified=True)
    (path,) = groups.make("a-1-1")
    groups.bound("a-1-1", Limits(cpu_milli=2**53 - 1))
    assert Path(path, "cpu.max").read_text() == "max 100000"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n", True),
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\noom_group_kill 0\n", False),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", False),
    ],
)
def test_out_of_memory_is_read_from_the_counters(
    tmp_path: Path, file: str, text: str, *, expected: bool
) -> None:
    (tmp_path / file).write_text(text)
    assert out_of_memory([str(tmp_path)]) is expected


def test_what_is_gone_has_no_members_and_no_counters(tmp_path: Path) -> None:
    gone = [str(tmp_path / "gone")]
    assert (members(gone), out_of_memory(gone)) == ([], False)
