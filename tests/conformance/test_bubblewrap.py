"""What bubblewrap promises beyond the contract: what an agent cannot see, cannot change and cannot keep."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from shared.messages import ExitKind, Network, SandboxKind
from spoke.spawners import cgroups, host
from spoke.spawners.arguments import options
from spoke.spawners.base import MountPoint, SetupError
from spoke.spawners.bubblewrap import Bubblewrap
from spoke.spawners.namespaces import has_capabilities
from spoke.spawners.processes import children, see
from spoke.spawners.watching import until
from tests.helpers.builders import spec
from tests.helpers.sandboxes import (
    CGROUP,
    Rig,
    alive_with,
    cgroup_folders,
    exits,
    lasts,
    out,
    remove_cgroups,
    says_so,
    shell,
    small,
)

NETWORK = Path("/proc/self/ns/net").readlink()

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    found = host.look(cgroups=CGROUP)
    if found.trouble:
        pytest.skip(found.trouble)
    made = Rig(SandboxKind.BUBBLEWRAP, tmp_path, found)
    try:
        yield made
    finally:
        await made.end()
        remove_cgroups()


# --- what it cannot see ------------------------------------------------------------------------------


async def test_without_network_there_is_only_a_loopback(rig: Rig) -> None:
    text = await rig.output(
        shell("tail -n +3 /proc/net/dev | cut -d: -f1; readlink /proc/self/ns/net")
    )
    interface, namespace = text.split()
    assert interface == "lo"
    assert namespace != str(NETWORK)


async def test_with_the_hosts_network_it_is_the_hosts(rig: Rig) -> None:
    text = await rig.output(shell("readlink /proc/self/ns/net", network=Network.HOST))
    assert text.strip() == str(NETWORK)


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/sys", "/run", "/var"]
)
async def test_the_hosts_files_are_not_there(rig: Rig, path: str) -> None:
    assert await rig.output(shell(f"test -e {path} || echo absent")) == "absent\n"


async def test_other_processes_are_not_there(rig: Rig) -> None:
    assert await rig.output(shell("echo /proc/[0-9]*")) in {
        "/proc/1 /proc/2\n",
        "/proc/1 /proc/2 /proc/3\n",
    }


async def test_the_environment_is_not_on_a_command_line(rig: Rig) -> None:
    """Anybody on the host may read command lines."""
    sandbox, _ = await rig.hold(exits(0, env={"TOKEN": "s3cret-in-env"}))
    assert out(sandbox) == ""
    assert alive_with("s3cret-in-env") == []
    assert alive_with("bwrap\0--args") != []


# --- what it cannot change ---------------------------------------------------------------------------


async def test_a_mount_of_the_site_is_there_and_read_only(rig: Rig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("of the site\n")
    mount = MountPoint(source=str(data), target="/data")
    script = "cat /data/file; touch /data/new || echo refused; rm /data/file || echo refused"
    text = await rig.output(shell(f"{{ {script}; }} 2>/dev/null"), mount)
    assert text == "of the site\nrefused\nrefused\n"
    assert (data / "file").exists()


@pytest.mark.parametrize("folder", ["/", "/dev", "/usr", "/etc", "/felloe", "/proc/sys/kernel"])
async def test_everything_but_the_sized_folders_is_read_only(rig: Rig, folder: str) -> None:
    assert await rig.output(shell(f"touch {folder}/x 2>/dev/null || echo refused")) == "refused\n"


async def test_its_input_is_read_only(rig: Rig) -> None:
    script = 'echo x >"$FELLOE_INPUT" || echo refused; cat "$FELLOE_INPUT"'
    assert (
        await rig.output(shell(f"{{ {script}; }} 2>/dev/null", input="given")) == "refused\ngiven"
    )


@pytest.mark.parametrize("folder", ["/work", "/tmp", "/dev/shm"])
async def test_what_it_writes_has_a_size(rig: Rig, folder: str) -> None:
    script = f"head -c 3000000 /dev/zero >{folder}/x 2>/dev/null || echo full; wc -c <{folder}/x"
    said, written = (await rig.output(shell(script, limits=small()))).split()
    assert said == "full"
    assert int(written) <= small().disk_bytes


async def test_it_is_an_ordinary_user_without_capabilities(rig: Rig) -> None:
    text = await rig.output(
        shell("id -u; grep -h ^Cap /proc/self/status /proc/1/status; unshare -U true")
    )
    lines = text.splitlines()
    assert lines[0] == "1000"
    assert {line.split()[1] for line in lines[1:11]} == {"0" * 16}
    assert "unshare failed" in lines[11]


# --- set-up, and the two processes of bubblewrap -----------------------------------------------------


async def test_a_mount_that_is_not_there_is_a_failed_set_up_and_leaves_nothing(rig: Rig) -> None:
    sandbox = rig.sandbox(exits(0), MountPoint(source="/no/such/folder", target="/data"))
    with pytest.raises(SetupError, match="/no/such/folder"):
        await rig.spawner.prepare(sandbox)
    assert (children(os.getpid()), cgroup_folders()) == ([], [])
    assert not (sandbox.folder / "hold").exists()


async def test_a_bubblewrap_that_is_not_there_is_a_failed_set_up(rig: Rig) -> None:
    spawner = Bubblewrap(msgspec.structs.replace(rig.host, bwrap="/no/such/bwrap"))
    with pytest.raises(SetupError, match="/no/such/bwrap"):
        await spawner.prepare(rig.sandbox(exits(0)))


async def test_a_bubblewrap_that_says_something_else_is_a_failed_set_up(
    rig: Rig, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: not today' >&2\nexit 1\n")
    fake.chmod(0o755)
    spawner = Bubblewrap(msgspec.structs.replace(rig.host, bwrap=str(fake)))
    with pytest.raises(SetupError, match="not today"):
        await spawner.prepare(rig.sandbox(exits(0)))
    assert children(os.getpid()) == []


async def test_killing_the_inner_one_is_told_as_a_signal(rig: Rig) -> None:
    sandbox, handle = await rig.start(shell("echo ready; sleep 60"))
    await says_so(sandbox, "ready")
    os.kill(handle.child_pid, signal.SIGKILL)
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.signal) == (ExitKind.SIGNALED, signal.SIGKILL)


async def test_with_a_handler_the_agent_is_process_1(rig: Rig) -> None:
    assert await rig.output(shell("echo $$", handles_sigterm=True)) == "1\n"


async def test_held_means_that_no_capability_is_left(rig: Rig) -> None:
    """What `prepare` waits for; a later bubblewrap that does it otherwise fails here."""
    _, handle = await rig.hold(exits(0))
    assert not has_capabilities(handle.child_pid)
    seen = see(handle.child_pid)
    assert seen is not None
    assert (seen.parent, seen.session) == (handle.pid, handle.pid)


async def test_an_inner_one_whose_outer_died_before_its_first_word_is_found(rig: Rig) -> None:
    sandbox, handle = await rig.hold(exits(0))
    (sandbox.folder / "status").write_text("")
    os.kill(handle.pid, signal.SIGKILL)
    assert await rig.spawner.recover(sandbox, None) is None
    assert await rig.spawner.processes(sandbox, handle) == 0


async def test_gigabytes_of_limits_are_no_trouble(rig: Rig) -> None:
    most = 2**53 - 1
    limits = small(
        cpu_milli=most, memory_bytes=most, pids=most, disk_bytes=most, output_bytes=most
    )
    sandbox, handle = await rig.start(exits(3, limits=limits))
    assert (await rig.spawner.wait(sandbox, handle)).code == 3


@pytest.mark.parametrize(
    "name", ["cpu_milli", "memory_bytes", "pids", "disk_bytes", "output_bytes"]
)
async def test_the_smallest_limit_ends_in_a_named_way(rig: Rig, name: str) -> None:
    try:
        sandbox, handle = await rig.start(exits(0, limits=small(**{name: 1})))
    except SetupError:
        return
    async with asyncio.timeout(20):
        end = await rig.spawner.wait(sandbox, handle)
    assert end.kind in {ExitKind.OUT_OF_MEMORY, ExitKind.SETUP_FAILED, ExitKind.EXITED}


async def test_a_tree_without_cpu_is_killed_quickly(rig: Rig) -> None:
    script = (
        "n=0; while [ $n -lt 10 ]; do (while :; do :; done) & n=$((n+1)); done; echo ready; wait"
    )
    sandbox, handle = await rig.start(shell(script, limits=small(cpu_milli=10)))
    await says_so(sandbox, "ready")
    async with asyncio.timeout(10):
        await rig.spawner.destroy(sandbox, handle)


async def test_its_cpu_is_bounded(rig: Rig) -> None:
    if "cpu" not in rig.host.cgroups.controllers:
        pytest.skip("this host gives no cgroup for CPU")
    _, handle = await rig.hold(exits(0, limits=small(cpu_milli=50)))
    assert "5000" in {bound for path in handle.cgroups for bound in cpu_bounds(path)}


def cpu_bounds(path: str) -> list[str]:
    files = [Path(path, name) for name in ("cpu.cfs_quota_us", "cpu.max")]
    return [file.read_text().split()[0] for file in files if file.exists()]


def test_what_the_host_lacks_is_said(tmp_path: Path) -> None:
    found = host.look(cgroups=CGROUP)
    remove_cgroups()
    lacks = Bubblewrap(found).lacks()
    assert any("seccomp" in lack for lack in lacks)
    assert (
        any("root" in lack for lack in lacks) == found.needs_root_permission == (os.geteuid() == 0)
    )
    assert len(set(lacks)) == len(lacks)


async def test_options_hold_no_secret_of_ours_and_no_second_network(rig: Rig) -> None:
    given = options(rig.sandbox(spec(env={"A": "b"})), Path("/x/input"))
    assert "--share-net" not in given
    assert given[given.index("A") - 1 : given.index("A") + 2] == ["--setenv", "A", "b"]
    assert (
        os.environ.get("PATH") not in given or os.environ["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    )


async def test_many_alive_at_once_are_watched_by_one_loop(rig: Rig) -> None:
    held = [await rig.hold(shell("exit 9")) for _ in range(40)]
    waiting = [asyncio.ensure_future(rig.spawner.wait(*one)) for one in held]
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in waiting)
    for one in held:
        await rig.spawner.release(*one)
    assert {end.code for end in await asyncio.gather(*waiting)} == {9}
    for one in held:
        await rig.spawner.clean_up(*one)
    await until(lambda: cgroup_folders() == [])


async def test_our_own_threads_come_back_from_where_they_started_it(rig: Rig) -> None:
    """Under version 1 a thread of ours starts the sandbox from inside its cgroup; it must not be ended or kept there."""
    sandbox, handle = await rig.start(lasts(30))
    assert os.getpid() not in cgroups.members(handle.cgroups)
    threads = [task / "cgroup" for task in Path("/proc/self/task").iterdir()]
    assert not [thread for thread in threads if sandbox.name in thread.read_text()]
    await rig.spawner.destroy(sandbox, handle)
