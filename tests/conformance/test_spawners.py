"""What every spawner keeps: the contract in `spoke.spawners.base`, over all implementations.

A test that needs real processes says so and leaves `simulated` out.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import msgspec
import pytest

from shared.messages import Exit, ExitKind, SandboxKind, Simulation, Stderr
from spoke.spawners import host
from spoke.spawners.attempt_folder import AttemptFolder
from spoke.spawners.base import Handle, SetupError
from spoke.spawners.namespaces import holders
from spoke.spawners.processes import children, is_alive, reap, tree
from spoke.spawners.watching import until
from tests.helpers.builders import spec
from tests.helpers.sandboxes import (
    CGROUP,
    REAL,
    Rig,
    alive_with,
    cgroup_folders,
    doomed_daemon,
    exits,
    lasts,
    out,
    remove_cgroups,
    says,
    says_so,
    shell,
    small,
    zombies,
)

pytestmark = pytest.mark.timeout(60)
_marks = count(os.getpid() * 1000 + 100_000)


@pytest.fixture(params=list(SandboxKind))
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    kind = SandboxKind(request.param)
    found = host.look(cgroups=CGROUP)
    if kind is SandboxKind.BUBBLEWRAP and found.trouble:
        pytest.skip(found.trouble)
    made = Rig(kind, tmp_path, found)
    try:
        yield made
    finally:
        await made.end()
        left = (zombies(), children(os.getpid()), cgroup_folders())
        remove_cgroups()
        for pid in left[1]:
            reap(pid)  # so that one failure does not look like many
        assert left == ([], [], [])


def real(rig: Rig) -> None:
    if rig.kind not in REAL:
        pytest.skip("simulated starts no process")


def held_by(folder: Path) -> list[int]:
    return [pid for name in ("bwrap", "sh") for pid in holders(folder / "hold", name)]


def bounded(rig: Rig, controller: str) -> None:
    if controller not in rig.host.cgroups.controllers:
        pytest.skip(f"this host gives no cgroup for {controller}")


def kills_trees(rig: Rig) -> None:
    real(rig)
    if rig.kind is SandboxKind.PROCESS and not rig.host.cgroups.controllers:
        assert any("escapes" in lack for lack in rig.spawner.lacks())
        pytest.skip("without a cgroup, a plain process that leaves its session is not found")


def mark() -> int:
    """A number of seconds that no other process sleeps."""
    return next(_marks)


# --- start, hold, end --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 255])
async def test_an_exit_code_arrives(rig: Rig, code: int) -> None:
    sandbox, handle = await rig.start(exits(code))
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.code) == (ExitKind.EXITED, code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_signal_that_ends_the_agent_is_named(rig: Rig, number: int) -> None:
    real(rig)
    sandbox, handle = await rig.start(shell(f"kill -{int(number)} $$"))
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.signal, end.code) == (ExitKind.SIGNALED, number, None)


async def test_output_is_in_the_spool_and_counted(rig: Rig) -> None:
    sandbox, handle = await rig.start(says("grüezi"))
    end = await rig.spawner.wait(sandbox, handle)
    assert (out(sandbox), end.output_bytes) == ("grüezi", 7)


async def test_nothing_runs_before_the_release(rig: Rig) -> None:
    sandbox, handle = await rig.hold(says("too early"))
    waiting = asyncio.ensure_future(rig.spawner.wait(sandbox, handle))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    assert (out(sandbox), await rig.spawner.processes(sandbox, handle)) == ("", 1)
    await rig.spawner.release(sandbox, handle)
    assert (await waiting).code == 0
    assert out(sandbox) == "too early"


async def test_an_attempt_that_was_never_released_can_be_destroyed(rig: Rig) -> None:
    sandbox, handle = await rig.hold(says("never") if rig.kind in REAL else lasts(60))
    await rig.spawner.destroy(sandbox, handle)
    assert await rig.spawner.processes(sandbox, handle) == 0
    end = await rig.spawner.wait(sandbox, handle)
    assert end.kind in {ExitKind.UNKNOWN, ExitKind.SIGNALED}
    assert out(sandbox) == ""


async def test_processes_are_counted_until_it_is_gone(rig: Rig) -> None:
    sandbox, handle = await rig.start(lasts(60))
    assert await rig.spawner.processes(sandbox, handle) >= 1
    await rig.spawner.destroy(sandbox, handle)
    assert await rig.spawner.processes(sandbox, handle) == 0


async def test_many_live_side_by_side(rig: Rig) -> None:
    async def one(code: int) -> int | None:
        sandbox, handle = await rig.start(exits(code))
        return (await rig.spawner.wait(sandbox, handle)).code

    assert await asyncio.gather(*map(one, range(12))) == list(range(12))


async def test_a_missing_command_is_the_authors_fault(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(spec(command=("no-such-program", "x")))
    end = await rig.spawner.wait(sandbox, handle)
    assert end.kind is ExitKind.START_FAILED
    assert "no-such-program" in end.detail


async def test_a_file_that_cannot_be_executed_is_the_authors_fault(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(spec(command=("/usr/lib",)))
    assert (await rig.spawner.wait(sandbox, handle)).kind is ExitKind.START_FAILED


async def test_a_nul_in_the_environment_is_refused_before_anything_starts(rig: Rig) -> None:
    real(rig)
    with pytest.raises(SetupError):
        await rig.spawner.prepare(rig.sandbox(exits(0, env={"A": "x\0--bind\0/\0/all"})))
    assert children(os.getpid()) == []


# --- SIGTERM, SIGKILL, trees -------------------------------------------------------------------------


async def test_sigterm_ends_an_agent_that_does_not_care(rig: Rig) -> None:
    sandbox, handle = await rig.start(
        spec(command=("sleep", "60"), simulation=Simulation(duration_ms=60_000))
    )
    await agent_runs(rig, "sleep")
    await rig.spawner.terminate(sandbox, handle)
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.signal) == (ExitKind.SIGNALED, signal.SIGTERM)


@pytest.mark.parametrize("first", [False, True])
async def test_an_agent_may_handle_sigterm(rig: Rig, *, first: bool) -> None:
    real(rig)
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    sandbox, handle = await rig.start(shell(script, handles_sigterm=first))
    await says_so(sandbox, "ready")
    await rig.spawner.terminate(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 5
    assert out(sandbox) == "ready\nbye\n"


async def test_an_agent_that_ignores_sigterm_is_destroyed(rig: Rig) -> None:
    real(rig)
    script = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
    sandbox, handle = await rig.start(shell(script))
    await says_so(sandbox, "ready")
    await rig.spawner.terminate(sandbox, handle)
    await asyncio.sleep(0.1)
    assert await rig.spawner.processes(sandbox, handle) > 0
    await rig.spawner.destroy(sandbox, handle)
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.signal) == (ExitKind.SIGNALED, signal.SIGKILL)


async def test_sigterm_reaches_the_agent_and_not_its_children(rig: Rig) -> None:
    real(rig)
    script = """
        trap 'kill $child; wait $child 2>/dev/null; echo child $?; exit 0' TERM
        sh -c 'echo child is ready; exec sleep 60' & child=$!
        echo parent is ready; wait"""
    sandbox, handle = await rig.start(shell(script))
    await says_so(sandbox, "child is ready")
    await says_so(sandbox, "parent is ready")
    await rig.spawner.terminate(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 0
    assert out(sandbox).endswith("\nchild 143\n")


async def test_destroy_ends_the_whole_tree(rig: Rig) -> None:
    kills_trees(rig)
    number = mark()
    script = (
        f"sleep {number} & setsid sleep {number} & (setsid sleep {number} &) ; echo ready; wait"
    )
    sandbox, handle = await rig.start(shell(script))
    await says_so(sandbox, "ready")
    await until(lambda: len(alive_with(f"sleep\0{number}")) == 3)
    await rig.spawner.destroy(sandbox, handle)
    assert alive_with(f"sleep\0{number}") == []


async def test_destroy_ends_what_stayed_in_the_session(rig: Rig) -> None:
    real(rig)
    number = mark()
    sandbox, handle = await rig.start(
        shell(f"sleep {number} & (sleep {number} &); echo ready; wait")
    )
    await says_so(sandbox, "ready")
    await rig.spawner.destroy(sandbox, handle)
    assert alive_with(f"sleep\0{number}") == []


async def test_what_an_agent_leaves_behind_ends_with_it(rig: Rig) -> None:
    kills_trees(rig)
    number = mark()
    sandbox, handle = await rig.start(shell(f"setsid sleep {number} & exit 3"))
    assert (await rig.spawner.wait(sandbox, handle)).code == 3
    assert alive_with(f"sleep\0{number}") == []


# --- bounds ------------------------------------------------------------------------------------------


async def test_too_much_memory_is_told_apart_from_a_signal(rig: Rig) -> None:
    real(rig)
    bounded(rig, "memory")
    sandbox, handle = await rig.start(
        spec(command=("tail", "/dev/zero"), limits=small(memory_bytes=32 * 1024**2))
    )
    end = await rig.spawner.wait(sandbox, handle)
    assert end.kind is ExitKind.OUT_OF_MEMORY


async def test_a_fork_bomb_is_bounded(rig: Rig) -> None:
    real(rig)
    bounded(rig, "pids")
    script = "n=0; while [ $n -lt 60 ]; do sleep 5 & n=$((n+1)); done; echo all"
    sandbox, handle = await rig.start(shell(script, limits=small(pids=16)))
    end = await rig.spawner.wait(sandbox, handle)
    assert end.code != 0
    assert "all" not in out(sandbox)


@pytest.mark.parametrize("script", ["yes", "yes | head -c 50000; exec sleep 60"])
async def test_too_much_output_ends_the_agent(rig: Rig, script: str) -> None:
    real(rig)
    sandbox, handle = await rig.start(shell(script, limits=small(output_bytes=10_000)))
    end = await rig.spawner.wait(sandbox, handle)
    assert end.kind is ExitKind.OUTPUT_CAP
    assert 20_000 < end.output_bytes <= small().disk_bytes


async def test_the_output_cap_counts_both_streams(rig: Rig) -> None:
    real(rig)
    script = "yes | head -c 15000; yes | head -c 15000 >&2; exec sleep 60"
    limits = small(output_bytes=10_000)
    sandbox, handle = await rig.start(shell(script, limits=limits, stderr=Stderr.SEPARATE))
    assert (await rig.spawner.wait(sandbox, handle)).kind is ExitKind.OUTPUT_CAP


async def test_no_core_file_and_few_open_files(rig: Rig) -> None:
    real(rig)
    assert await rig.output(shell("ulimit -c; ulimit -n; ulimit -H -n")) == "0\n4096\n4096\n"


# --- what the agent finds ----------------------------------------------------------------------------


async def test_stderr_goes_with_stdout_unless_asked(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(shell("echo a; echo b >&2; echo c"))
    await rig.spawner.wait(sandbox, handle)
    assert out(sandbox) == "a\nb\nc\n"
    assert not (sandbox.folder / "err").exists()


async def test_stderr_can_be_kept_apart(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(shell("echo a; echo b >&2", stderr=Stderr.SEPARATE))
    await rig.spawner.wait(sandbox, handle)
    assert (out(sandbox), out(sandbox, "err")) == ("a\n", "b\n")


async def test_the_environment_holds_the_spec_and_nothing_of_the_daemon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real(rig)
    monkeypatch.setenv("SECRET", "of the daemon")
    sandbox, handle = await rig.start(
        spec(command=("env",), env={"MINE": "a = b\nc", "FELLOE_AGENT": "another"})
    )
    await rig.spawner.wait(sandbox, handle)
    text = out(sandbox)
    assert "MINE=a = b\nc" in text
    assert f"FELLOE_AGENT={sandbox.agent}\n" in text
    assert f"FELLOE_IDEMPOTENCY_KEY={sandbox.agent}-1\n" in text
    names = {line.partition("=")[0] for line in text.splitlines() if "=" in line}
    own = {
        f"FELLOE_{name}" for name in ("AGENT", "GENERATION", "ATTEMPT", "IDEMPOTENCY_KEY", "INPUT")
    }
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == own | {"MINE", "PATH", "HOME", "LANG"}


async def test_the_input_is_at_felloe_input(rig: Rig) -> None:
    real(rig)
    assert (
        await rig.output(shell('cat "$FELLOE_INPUT"', input="line 1\nzwöi\n")) == "line 1\nzwöi\n"
    )


async def test_an_empty_input_is_an_empty_file(rig: Rig) -> None:
    real(rig)
    assert await rig.output(shell('test -f "$FELLOE_INPUT" && wc -c <"$FELLOE_INPUT"')) == "0\n"


async def test_the_agent_begins_in_an_empty_folder_that_is_its_home(rig: Rig) -> None:
    real(rig)
    assert await rig.output(shell('ls -A; test "$PWD" = "$HOME" && echo x >y && cat y')) == "x\n"


async def test_stdin_is_empty_and_no_other_file_is_open(rig: Rig) -> None:
    real(rig)
    inherited, ours = os.pipe()
    os.set_inheritable(inherited, True)
    try:
        script = "cat; for f in /proc/self/fd/*; do echo ${f##*/}; done"
        again = Rig(rig.kind, Path(rig.sandbox(exits(0)).folder), rig.host)
        try:
            assert (await again.output(shell(script))).split()[:3] == ["0", "1", "2"]
            seen = set((await again.output(shell("ls /proc/self/fd"))).split())
        finally:
            await again.end()
        assert seen == {"0", "1", "2", "3"}  # 3 is the folder that `ls` reads
    finally:
        os.close(inherited)
        os.close(ours)


async def test_no_signal_is_blocked_or_ignored(rig: Rig) -> None:
    real(rig)
    text = await rig.output(spec(command=("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")))
    blocked, ignored = (int(field, 16) for field in text.split()[1::2])
    # glibc keeps 32 and 33 for itself: it ignores them in whatever `posix_spawn` starts.
    assert (blocked, ignored & ~(0b11 << 31)) == (0, 0)


async def test_the_agent_is_not_in_the_daemons_session(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(lasts(60))
    assert os.getsid(handle.pid) == handle.pid != os.getsid(0)
    await rig.spawner.destroy(sandbox, handle)


# --- twice, side by side, cancelled, too late --------------------------------------------------------


async def test_everything_may_be_said_twice(rig: Rig) -> None:
    sandbox, handle = await rig.hold(exits(7))
    for _ in range(2):
        await rig.spawner.release(sandbox, handle)
    assert [(await rig.spawner.wait(sandbox, handle)).code for _ in range(2)] == [7, 7]
    for _ in range(2):
        await rig.spawner.terminate(sandbox, handle)
        await rig.spawner.destroy(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 7
    for _ in range(2):
        await rig.spawner.clean_up(sandbox, handle)


async def test_a_release_after_the_end_does_no_harm(rig: Rig) -> None:
    sandbox, handle = await rig.start(exits(7))
    await rig.spawner.wait(sandbox, handle)
    await rig.spawner.release(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 7
    assert await rig.spawner.processes(sandbox, handle) == 0


async def test_several_may_wait_side_by_side(rig: Rig) -> None:
    sandbox, handle = await rig.hold(lasts(0.05, code=4))
    waiting = [asyncio.ensure_future(rig.spawner.wait(sandbox, handle)) for _ in range(3)]
    await rig.spawner.release(sandbox, handle)
    assert [end.code for end in await asyncio.gather(*waiting)] == [4, 4, 4]


async def test_a_cancelled_wait_leaves_the_agent_alone(rig: Rig) -> None:
    sandbox, handle = await rig.start(lasts(0.15, code=4))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await rig.spawner.wait(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 4


@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5])
async def test_a_cancelled_prepare_leaves_nothing(rig: Rig, after_ms: int) -> None:
    sandbox = rig.sandbox(lasts(60))
    preparing = asyncio.ensure_future(rig.spawner.prepare(sandbox))
    await asyncio.sleep(after_ms / 1000)
    if preparing.cancel():
        with pytest.raises(asyncio.CancelledError):
            await preparing
    else:
        rig.knows(sandbox, preparing.result())
        return
    assert (children(os.getpid()), cgroup_folders()) == ([], [])
    assert held_by(sandbox.folder) == []


async def test_a_second_prepare_is_refused_while_it_runs(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(lasts(60))
    with pytest.raises(SetupError, match="started already"):
        await rig.spawner.prepare(sandbox)
    assert await rig.spawner.processes(sandbox, handle) > 0


async def test_a_second_prepare_is_refused_after_it_ran(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(says("once"))
    await rig.spawner.wait(sandbox, handle)
    with pytest.raises(SetupError, match="started already"):
        await rig.spawner.prepare(sandbox)
    assert out(sandbox) == "once"


async def test_a_second_prepare_ends_what_was_only_held(rig: Rig) -> None:
    real(rig)
    sandbox, first = await rig.hold(says("once"))
    second = rig.knows(sandbox, await rig.spawner.prepare(sandbox))
    assert not is_alive(first.pid, first.pid_started)
    await rig.spawner.release(sandbox, second)
    assert (await rig.spawner.wait(sandbox, second)).code == 0
    assert out(sandbox) == "once"


async def test_clean_up_keeps_the_spool(rig: Rig) -> None:
    sandbox, handle = await rig.start(says("kept"))
    await rig.spawner.wait(sandbox, handle)
    await rig.spawner.clean_up(sandbox, handle)
    assert out(sandbox) == "kept"
    assert not (sandbox.folder / "hold").exists()
    assert not (sandbox.folder / "input").exists()


async def test_spools_are_for_the_daemon_only(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(says("x"))
    await rig.spawner.wait(sandbox, handle)
    assert sandbox.folder.stat().st_mode & 0o777 == 0o700
    modes = {
        file.name: file.stat().st_mode & 0o777
        for file in sandbox.folder.iterdir()
        if file.is_file()
    }
    assert set(modes.values()) == {0o600}


# --- a handle is for one process only ----------------------------------------------------------------


async def test_a_reused_pid_is_nobody_we_know(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.start(lasts(60))
    stale = msgspec.structs.replace(
        handle,
        pid_started=handle.pid_started - 1,
        child_started=handle.child_started - 1,
        cgroups=(),
    )
    if rig.kind is SandboxKind.BUBBLEWRAP:
        await rig.spawner.terminate(sandbox, stale)
        await rig.spawner.destroy(sandbox, stale)
    assert await rig.spawner.processes(sandbox, stale) == 0
    assert await rig.spawner.processes(sandbox, handle) > 0


async def test_after_a_reboot_nothing_is_adopted_and_nothing_is_touched(rig: Rig) -> None:
    sandbox, handle = await rig.start(lasts(60))
    old = msgspec.structs.replace(handle, boot_id="of another boot", cgroups=())
    end = await rig.successor().recover(sandbox, old)
    assert isinstance(end, Exit)
    assert end.kind is ExitKind.UNKNOWN
    assert await rig.spawner.processes(sandbox, handle) > 0


# --- the daemon is killed ----------------------------------------------------------------------------


async def test_a_successor_adopts_an_agent_that_runs(rig: Rig) -> None:
    sandbox = rig.sandbox(lasts(1.0, code=7))
    with doomed_daemon(sandbox, "released") as handle:
        assert handle is not None
    rig.knows(sandbox, handle)
    found = await rig.spawner.recover(sandbox, handle)
    assert found == handle
    await rig.spawner.release(sandbox, handle)
    assert await rig.spawner.processes(sandbox, handle) > 0
    async with asyncio.timeout(10):
        end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.code) == (ExitKind.EXITED, 7)


async def test_a_successor_can_end_what_it_adopted(rig: Rig) -> None:
    pretends = Simulation(duration_ms=60_000, output="ready")
    sandbox = rig.sandbox(shell("echo ready; sleep 60", simulation=pretends))
    with doomed_daemon(sandbox, "released") as handle:
        assert handle is not None
        await says_so(sandbox, "ready")  # before its program runs there is no exit code to record
    rig.knows(sandbox, handle)
    assert await rig.spawner.recover(sandbox, handle) == handle
    await rig.spawner.release(sandbox, handle)
    await rig.spawner.destroy(sandbox, handle)
    end = await rig.spawner.wait(sandbox, handle)
    assert (end.kind, end.signal) == (ExitKind.SIGNALED, signal.SIGKILL)
    assert await rig.spawner.processes(sandbox, handle) == 0


async def test_a_successor_releases_what_was_held_with_a_durable_handle(rig: Rig) -> None:
    real(rig)
    sandbox = rig.sandbox(says("at last"))
    with doomed_daemon(sandbox, "prepared") as handle:
        assert handle is not None
    rig.knows(sandbox, handle)
    assert await rig.spawner.recover(sandbox, handle) == handle
    assert out(sandbox) == ""
    await rig.spawner.release(sandbox, handle)
    assert (await rig.spawner.wait(sandbox, handle)).code == 0
    assert out(sandbox) == "at last"


@pytest.mark.parametrize("stage", ["launched", "prepared"])
async def test_an_intent_without_a_handle_never_ran_and_never_will(rig: Rig, stage: str) -> None:
    real(rig)
    sandbox = rig.sandbox(says("never"))
    with doomed_daemon(sandbox, stage) as handle:
        pass
    assert (handle is None) == (stage == "launched")
    for _ in range(2):
        assert await rig.spawner.recover(sandbox, None) is None
    assert held_by(sandbox.folder) == []
    assert not AttemptFolder(sandbox.folder).release()
    if handle is not None:
        assert not is_alive(handle.pid, handle.pid_started)
    assert out(sandbox) == ""
    # The attempt was not counted, so the same one is begun again.
    again = rig.knows(sandbox, await rig.spawner.prepare(sandbox))
    await rig.spawner.release(sandbox, again)
    assert (await rig.spawner.wait(sandbox, again)).code == 0
    assert out(sandbox) == "never"


async def test_a_stranger_at_the_fifo_is_not_ended_and_is_no_proof_of_absence(rig: Rig) -> None:
    real(rig)
    sandbox, handle = await rig.hold(exits(0))
    await rig.spawner.destroy(sandbox, handle)
    stranger = os.open(sandbox.folder / "hold", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(SetupError, match="cannot be ended"):
            await rig.successor(patience_s=0.2).recover(sandbox, None)
    finally:
        os.close(stranger)
    assert await rig.successor().recover(sandbox, None) is None


async def test_an_intent_that_began_nothing_is_not_counted(rig: Rig) -> None:
    assert await rig.spawner.recover(rig.sandbox(exits(0)), None) is None


async def test_a_successor_learns_how_an_agent_ended_meanwhile(rig: Rig) -> None:
    sandbox = rig.sandbox(lasts(0.05, code=7))
    with doomed_daemon(sandbox, "released") as handle:
        assert handle is not None
    rig.knows(sandbox, handle)
    await over(rig, handle)
    for _ in range(2):
        end = await rig.spawner.recover(sandbox, handle)
        assert isinstance(end, Exit)
        assert (end.kind, end.code) == (ExitKind.EXITED, 7)


async def test_an_agent_whose_keeper_was_killed_is_ended_and_its_exit_is_unknown(rig: Rig) -> None:
    kills_trees(rig)
    number = mark()
    sandbox = rig.sandbox(shell(f"setsid sleep {number} & echo ready; wait"))
    with doomed_daemon(sandbox, "released") as handle:
        assert handle is not None
        await says_so(sandbox, "ready")
    rig.knows(sandbox, handle)
    os.kill(handle.pid, signal.SIGKILL)
    await over(rig, handle)
    end = await rig.spawner.recover(sandbox, handle)
    assert isinstance(end, Exit)
    assert end.kind is ExitKind.UNKNOWN
    assert alive_with(f"sleep\0{number}") == []


async def test_an_agent_whose_keeper_dies_is_ended_at_once(rig: Rig) -> None:
    kills_trees(rig)
    number = mark()
    sandbox, handle = await rig.start(shell(f"echo ready; exec sleep {number}"))
    await says_so(sandbox, "ready")
    os.kill(handle.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        end = await rig.spawner.wait(sandbox, handle)
    assert end.kind is ExitKind.UNKNOWN
    assert alive_with(f"sleep\0{number}") == []


async def agent_runs(rig: Rig, name: str) -> None:
    """Wait until the program has been executed: before, SIGTERM meets what starts it."""
    if rig.kind in REAL:
        async with asyncio.timeout(10):
            await until(lambda: any(is_named(pid, name) for pid in tree(os.getpid())))


def is_named(pid: int, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


async def over(rig: Rig, handle: Handle) -> None:
    async with asyncio.timeout(10):
        await until(lambda: not is_alive(handle.pid, handle.pid_started))
    if rig.kind not in REAL:
        await asyncio.sleep(0.1)
