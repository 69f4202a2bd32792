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


def hierarchies(mount: Path, own: str = "") -> None:
    """Files as the kernel has them under version 1; `own` is the daemon's folder, "" the top."""
    for controller, file in (
        ("memory", "memory.limit_in_bytes"),
        ("pids", "pids.max"),
        ("cpu", "cpu.cfs_quota_us"),
    ):
        for folder in (mount / controller / "felloe", mount / controller / "felloe" / "a-1-1"):
            folder.mkdir(parents=True)
            (folder / file).touch()
            (folder / "tasks").touch()
            (folder / "cgroup.procs").touch()
        (mount / controller / own).mkdir(exist_ok=True)
        (mount / controller / own / "tasks").touch()


OWN = "5:memory:/own\n4:pids:/own\n3:cpu,cpuacct:/own\n"


async def test_under_version_1_a_thread_goes_in_starts_and_comes_back(tmp_path: Path) -> None:
    hierarchies(tmp_path, "own")
    groups = Cgroups.find(is_root=True, mount=tmp_path, own=OWN)
    assert groups.inside("a-1-1", lambda: 4711) == 4711
    await groups.join(groups.paths("a-1-1"), (4711,))
    for path in map(Path, groups.paths("a-1-1")):
        assert (path / "tasks").read_text() == "0"
        assert (path / "cgroup.procs").read_text() == ""
        assert (path.parents[1] / "own" / "tasks").read_text() == "0"


async def test_nobody_goes_in_where_there_is_no_way_back(tmp_path: Path) -> None:
    """In a container without a cgroup namespace the daemon's own folder is not to be seen."""
    hierarchies(tmp_path)
    groups = Cgroups.find(is_root=True, mount=tmp_path, own=OWN)
    assert groups.inside("a-1-1", lambda: 4711) == 4711
    await groups.join(groups.paths("a-1-1"), (4711,))
    for path in map(Path, groups.paths("a-1-1")):
        assert (path / "tasks").read_text() == ""
        assert (path / "cgroup.procs").read_text() == "4711"


def test_a_way_back_that_fails_does_not_close_the_others(tmp_path: Path) -> None:
    hierarchies(tmp_path, "own")
    groups = Cgroups.find(is_root=True, mount=tmp_path, own=OWN)
    (tmp_path / "cpu" / "own" / "tasks").unlink()
    with pytest.raises(FileNotFoundError):
        groups.inside("a-1-1", lambda: 4711)
    for controller in ("memory", "pids"):
        assert (tmp_path / controller / "own" / "tasks").read_text() == "0"
