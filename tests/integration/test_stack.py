"""The embedded stack's parts, with real processes: what stays up, what comes back, and that nothing is left."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
import pytest

from hub.config import HubSettings
from hub.dev import binaries, settings
from hub.dev.children import Child, Program
from hub.dev.plan import Options, draw_up, lock
from hub.dev.stack import Stack, StackError
from hub.dev.toml import to_toml
from hub.dev.watch import Watch
from hub.dev.watcher import marked, started
from shared.config import load
from shared.errors import ConfigError
from shared.keys import read_private_key, read_public_key
from spoke.config import SpokeSettings

MARK = "a test of the watcher"


def quiet(_line: str) -> None:
    """Take a line of progress and say nothing."""


async def until(condition, *, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(settings.ROOT)}


@asynccontextmanager
async def child_of(folder: Path, code: str, said: list[str] | None = None) -> AsyncIterator[Child]:
    """Yield a child that runs Python code, not started yet."""
    watch = Watch(MARK, environment(), folder / "watcher.log")
    argv = [sys.executable, "-S", "-c", code]
    program = Program(
        name="it", argv=argv, log=folder / "it.log", env=environment(), folder=folder
    )
    child = Child(program, watch, quiet if said is None else said.append)
    try:
        yield child
    finally:
        await child.stop(grace_s=1.0)
        watch.close()


@asynccontextmanager
async def servers(**options) -> AsyncIterator[Stack]:
    """Yield a stack of which only NATS and Valkey run."""
    stack = Stack(None, Options(**options), quiet)
    try:
        stack.prepare()
        for name in ("hub", *stack.spokes):
            del stack.children[name]
        stack.start()
        await until(lambda: all(stack.plan.socket(spoke).exists() for spoke in stack.spokes))
        yield stack
    finally:
        await stack.stop()


async def test_a_child_that_ends_by_itself_is_started_again(tmp_path):
    said: list[str] = []
    async with child_of(
        tmp_path, "import sys; print('here', flush=True); sys.exit(3)", said
    ) as child:
        child.start()
        await until(lambda: child.starts >= 3)
        assert "here" in child.last_lines()
    assert "exit 3" in said[0]


async def test_a_child_that_was_killed_comes_back_under_another_pid(tmp_path):
    async with child_of(tmp_path, "import time; time.sleep(60)") as child:
        child.start()
        await until(lambda: child.pid is not None)
        before = child.kill()
        await until(lambda: child.pid not in (None, before))


async def test_a_child_that_is_held_stays_down_until_it_may_go(tmp_path):
    async with child_of(tmp_path, "import time; time.sleep(60)") as child:
        child.start()
        await until(lambda: child.pid is not None)
        child.hold()
        await child.gone()
        await asyncio.sleep(0.4)
        assert child.pid is None
        child.go()
        await until(lambda: child.pid is not None)


async def test_a_child_that_ignores_sigterm_is_stopped_all_the_same(tmp_path):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    async with child_of(tmp_path, code) as child:
        child.start()
        await until(lambda: "up" in child.last_lines())
        await child.stop(grace_s=0.1)
        assert child.pid is None
        await child.stop(grace_s=0.1)


def test_the_watcher_ends_children_runs_what_comes_after_and_removes_folders(tmp_path):
    victim = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    folder, after = tmp_path / "temporary", tmp_path / "after"
    folder.mkdir()
    argv = [sys.executable, "-P", "-S", "-m", "hub.dev.watcher", MARK]
    watcher = subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment())
    facts = [
        {"pid": victim.pid, "started": started(victim.pid)},
        {"then": [sys.executable, "-c", f"open({str(after)!r}, 'w').close()"]},
        {"remove": str(folder)},
    ]
    watcher.communicate("".join(json.dumps(fact) + "\n" for fact in facts).encode(), timeout=10)
    assert victim.wait(timeout=5) == -signal.SIGKILL
    assert after.exists()
    assert not folder.exists()


def test_the_watcher_leaves_a_process_alone_that_only_has_the_pid_of_a_child(tmp_path):
    bystander = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    try:
        argv = [sys.executable, "-P", "-S", "-m", "hub.dev.watcher", MARK]
        watcher = subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment())
        watcher.communicate(
            json.dumps({"pid": bystander.pid, "started": "1"}).encode() + b"\n", timeout=10
        )
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc: marks are read there"
)
def test_the_watcher_finds_a_child_by_its_mark_that_was_not_reported_yet(tmp_path):
    mark = f"{MARK} {tmp_path}"
    victim = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"], env={"FELLOE_STACK": mark}
    )
    argv = [sys.executable, "-P", "-S", "-m", "hub.dev.watcher", mark]
    watcher = subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment())
    watcher.communicate(b"", timeout=10)
    assert victim.wait(timeout=5) == -signal.SIGKILL


async def test_a_stack_whose_parent_is_killed_with_minus_nine_leaves_nothing(tmp_path):
    code = """
import asyncio, json
from hub.dev.plan import Options
from hub.dev.stack import Stack

async def main():
    stack = Stack(None, Options(), lambda line: None)
    stack.prepare()
    for name in ("hub", *stack.spokes):
        del stack.children[name]
    stack.start()
    while any(child.pid is None for child in stack.children.values()):
        await asyncio.sleep(0.02)
    pids = {child.pid: str(stack.plan.run) for child in stack.children.values()}
    print(json.dumps({"pids": list(pids), "run": str(stack.plan.run)}), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE, env=environment()
    )
    assert parent.stdout is not None
    facts = json.loads(await parent.stdout.readline())
    alive = {pid: started(pid) for pid in facts["pids"]}
    assert len(alive) == 3
    assert all(alive.values())
    parent.kill()
    await parent.wait()
    await until(lambda: all(started(pid) != since for pid, since in alive.items()))
    await until(lambda: not Path(facts["run"]).exists(), seconds=10)


def test_settings_are_what_the_daemons_take(tmp_path):
    plan = draw_up(tmp_path / "stack", Options(simulated=True, prefetch=4))
    try:
        settings.write(plan, isolated=True)
        hub = load(HubSettings, "FELLOE_HUB", plan.settings("hub"), {})
        spoke = load(SpokeSettings, "FELLOE_SPOKE", plan.settings("zurich"), {})
        assert hub.http.token == plan.token
        assert spoke.spoke.prefetch == 4
        assert spoke.sandbox.kinds == ("bubblewrap", "simulated")
        assert spoke.sandbox.mounts["source"].target == "/src"
        read_private_key(hub.keys.hub, "hub")
        read_private_key(spoke.keys.spoke, "spoke")
        read_public_key(spoke.keys.hub, "hub")
        read_public_key(hub.keys.spokes / "zurich.pub", "spoke")
    finally:
        plan.run.rmdir()


def test_what_agents_see_of_our_sources_holds_no_key_and_no_password(tmp_path):
    plan = draw_up(tmp_path / "stack", Options())
    try:
        settings.write(plan, isolated=True)
        source = plan.folder / "source"
        assert (source / "hub" / "dev" / "agents" / "lint.py").is_file()
        assert not list(source.rglob("key"))
        assert not list(source.rglob("stack.json"))
    finally:
        plan.run.rmdir()


def test_a_kept_stack_comes_back_with_its_keys_passwords_and_token(tmp_path):
    first = draw_up(tmp_path / "stack", Options())
    second = draw_up(tmp_path / "stack", Options(tap=True))
    try:
        assert second.token == first.token
        assert second.facts.nats_port == first.facts.nats_port
        assert first.facts.passwords.items() <= second.facts.passwords.items()
        assert (tmp_path / "stack").stat().st_mode & 0o077 == 0
        assert second.token_file.stat().st_mode & 0o077 == 0
    finally:
        first.run.rmdir()
        second.run.rmdir()


def test_a_folder_serves_one_stack_at_a_time(tmp_path):
    held = lock(tmp_path)
    try:
        with pytest.raises(ConfigError, match="already up"):
            lock(tmp_path)
    finally:
        os.close(held)
    os.close(lock(tmp_path))


def test_toml_is_read_back_as_it_was_written():
    groups = {
        "a": {
            "text": 'q"\\\n\x7f\u2028é😀',
            "yes": True,
            "n": 3,
            "x": 1.5,
            "list": ["a", 1],
            "map": {"k l": "v"},
        }
    }
    assert tomllib.loads(to_toml(groups)) == groups


async def test_a_child_that_never_becomes_ready_is_named_with_the_end_of_its_log():
    async with servers() as stack:
        stack.add("hub", [sys.executable, "-c", "raise SystemExit('the reason')"]).start()
        with pytest.raises(StackError, match=r"hub: .*again and again[\s\S]*the reason"):
            await stack.ready(timeout_s=20)


@pytest.mark.parametrize(
    ("user", "subject", "allowed"),
    [
        ("zurich", "felloe.v1.zurich.rep", True),
        ("zurich", "felloe.v1.zurich.log.hub", True),
        ("zurich", "felloe.v1.geneva.rep", False),
        ("zurich", "felloe.v1.geneva.cmd", False),
        ("zurich", "felloe.v1.zurich.cmd", False),
        ("zurich", "_INBOX_geneva.x", False),
        ("hub", "felloe.v1.geneva.cmd", True),
        ("hub", "_INBOX_geneva.x", True),
        ("hub", "felloe.v1.geneva.rep", False),
        ("tap", "felloe.v1.geneva.cmd", True),
        ("tap", "felloe.v1.geneva.rep", False),
    ],
)
async def test_each_nats_user_publishes_on_its_own_subjects_only(
    nats_only, user, subject, allowed
):
    assert await is_allowed(nats_only, user, publish=subject) is allowed


@pytest.mark.parametrize(
    ("user", "subject", "allowed"),
    [
        ("zurich", "felloe.v1.zurich.cmd", True),
        ("zurich", "_INBOX_zurich.>", True),
        ("zurich", "felloe.v1.geneva.cmd", False),
        ("zurich", "felloe.v1.>", False),
        ("zurich", "_INBOX.>", False),
        ("zurich", "_INBOX_hub.>", False),
        ("hub", "_INBOX_hub.>", True),
        ("hub", "felloe.v1.*.rep", True),
        ("hub", "felloe.v1.*.log.hub", True),
        ("hub", "felloe.v1.*.cmd", False),
        ("tap", "felloe.v1.>", True),
    ],
)
async def test_each_nats_user_hears_its_own_subjects_only(nats_only, user, subject, allowed):
    assert await is_allowed(nats_only, user, subscribe=subject) is allowed


@pytest.fixture(scope="module")
def nats_only(tmp_path_factory):
    plan = draw_up(tmp_path_factory.mktemp("nats") / "stack", Options(tap=True))
    settings.write(plan, isolated=True)
    server = subprocess.Popen(
        [binaries.nats_server(), "-c", plan.settings("nats")],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    yield plan
    server.terminate()
    server.wait()
    plan.run.rmdir()


async def is_allowed(plan, user: str, *, publish: str = "", subscribe: str = "") -> bool:
    """Return whether the server took it without a permissions violation."""
    errors: list[Exception] = []

    async def on_error(error: Exception) -> None:
        errors.append(error)

    async with asyncio.timeout(5):
        while True:
            try:
                client = await nats.connect(
                    plan.nats_url,
                    user=user,
                    password=plan.facts.passwords[user],
                    error_cb=on_error,
                    allow_reconnect=False,
                )
                break
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)
    errors.clear()
    if publish:
        await client.publish(publish, b"x")
    else:
        await client.subscribe(subscribe)
    await client.flush()
    await asyncio.sleep(0.02)
    await client.close()
    return not any("permissions violation" in str(error).lower() for error in errors)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
async def test_up_writes_down_where_it_is_and_leaves_nothing_after_ctrl_c(tmp_path, flags):
    folder = tmp_path / ".felloe"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "hub.dev", "up", "--folder", str(folder), *flags),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            ready = b'{"url"' if flags else b"ready"
            while ready not in (line := await process.stdout.readline()):
                assert line, "it ended early"
        pids = {pid: started(pid) for pid in marked(str(folder))}
        client = json.loads((folder / "client.json").read_text())
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
    assert len(pids) >= 6
    assert all(started(pid) != since for pid, since in pids.items())
    assert client["url"].startswith("http://127.0.0.1:")
    assert (folder / client["token_file"]).is_file()
    if flags:
        said = json.loads(line)
        assert (said["url"], said["spokes"]) == (client["url"], ["zurich", "geneva"])
