"""The CLIs as a person uses them, as processes of their own, against a real hub and a scripted spoke."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from hub.client import Client
from hub.schemas import SpawnRequest
from shared.lifecycle import State
from shared.messages import (
    EventKind,
    Exit,
    ExitKind,
    Kill,
    LogChunk,
    LogKind,
    LogStream,
    Spawn,
    SpokeHeader,
    Tail,
)
from shared.subjects import logs
from shared.trust import seal_report
from tests.helpers.hub_site import SPOKE, TOKEN, HubSite, hub_site, spoke_peer
from tests.helpers.spoke_peer import SpokePeer
from tests.helpers.spoke_site import NatsServer

ROOT = Path(__file__).parents[2]
HELD = SpawnRequest(command=["/bin/true"], hold=True)


class Ended:
    """How a command ended."""

    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status, self.out, self.err = status, out.decode(), err.decode()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[HubSite]:
    async with hub_site(tmp_path) as running:
        yield running


@pytest.fixture
async def hub(site: HubSite) -> AsyncIterator[Client]:
    async with site.client() as client:
        yield client


async def felloe(site: HubSite, *args: str, token: str = TOKEN) -> Ended:
    """Run `felloe` to its end."""
    environment = {
        **os.environ,
        "FELLOE_URL": site.url,
        "FELLOE_TOKEN": token,
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub.cli.felloe", *args, env=environment, cwd=site.folder,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, out, err)


async def run_agent(peer: SpokePeer, end: Exit, output: bytes = b"") -> Spawn:
    """Play the spoke for one agent that writes and ends."""
    spawned = await peer.next_command()
    assert isinstance(spawned.item, Spawn)
    await peer.ask([peer.event(EventKind.QUEUED, spawned), peer.event(EventKind.RUNNING, spawned)])
    if output:
        await write(peer, output)
    kind = EventKind.SUCCEEDED if end.code == 0 else EventKind.FAILED
    await peer.ask([peer.event(kind, spawned, exit=end, reason=end.kind.value)])
    return spawned.item


async def write(peer: SpokePeer, output: bytes) -> None:
    tail = (await peer.next_command()).item
    assert isinstance(tail, Tail)
    for kind, attempt, data in (
        (LogKind.DATA, 1, output),
        (LogKind.ATTEMPT_END, 1, b""),
        (LogKind.END, 2, b""),
    ):
        chunk = LogChunk(
            cmd=tail.id, agent=tail.agent, gen=tail.gen, attempt=attempt, kind=kind, stream=LogStream.OUT,
            offset=len(output) if kind is LogKind.ATTEMPT_END else 0, data=data, length=0, reason="",
        )  # fmt: skip
        header = SpokeHeader(federation=peer.federation, iss=SPOKE, inc=peer.incarnation, iat=1)
        await peer.bus.publish(logs(SPOKE, tail.reader), seal_report(header, [chunk], peer.signer))


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (Exit(kind=ExitKind.EXITED, code=0), 0),
        (Exit(kind=ExitKind.EXITED, code=3), 3),
        (Exit(kind=ExitKind.SIGNALED, signal=9), 137),
        (Exit(kind=ExitKind.TIMEOUT), 124),
        (Exit(kind=ExitKind.START_FAILED), 126),
    ],
)
async def test_spawn_and_wait_ends_as_the_agent_did(site: HubSite, end: Exit, status: int) -> None:
    async with spoke_peer(site) as peer:
        playing = asyncio.create_task(run_agent(peer, end))
        ended = await felloe(site, "spawn", "--wait", "--max-retries", "0", "--", "/bin/x")
        spawned = await playing

    assert ended.status == status, ended.err
    assert spawned.spec.command == ("/bin/x",)
    assert ended.out == ""


async def test_spawn_and_follow_prints_the_output_and_nothing_else(site: HubSite) -> None:
    async with spoke_peer(site) as peer:
        playing = asyncio.create_task(
            run_agent(peer, Exit(kind=ExitKind.EXITED, code=5), "grüezi\n".encode())
        )
        ended = await felloe(site, "spawn", "--follow", "--", "/bin/x")
        await playing

    assert (ended.status, ended.out) == (5, "grüezi\n")


async def test_ids_may_be_abbreviated_and_ambiguous_ones_are_refused(
    site: HubSite, hub: Client
) -> None:
    first, _ = await hub.spawn(HELD), await hub.spawn(HELD)

    shown = await felloe(site, "show", first.id[-9:], "--json")
    unclear = await felloe(site, "show", first.id[:8])
    unknown = await felloe(site, "show", "0" * 9)

    assert json.loads(shown.out)["id"] == first.id
    assert (unclear.status, unknown.status) == (126, 126)
    assert "could be" in unclear.err
    assert "none of the newest" in unknown.err


async def test_a_kill_waits_for_its_confirmation_and_tells_each_step(
    site: HubSite, hub: Client
) -> None:
    async with spoke_peer(site) as peer:
        agent = await hub.spawn(SpawnRequest(command=["a"]))
        spawned = await peer.next_command()
        await peer.ask(
            [peer.event(EventKind.QUEUED, spawned), peer.event(EventKind.RUNNING, spawned)]
        )

        killing = asyncio.create_task(felloe(site, "kill", "--wait", agent.id))
        order = await peer.next_command()
        assert isinstance(order.item, Kill)
        await peer.ask([peer.event(EventKind.KILL_ACCEPTED, order)])
        await asyncio.sleep(0.5)
        assert not killing.done()
        await peer.ask([peer.event(EventKind.KILLED, order, exit=Exit(kind=ExitKind.KILLED))])
        ended = await killing

    assert ended.status == 0
    assert "confirmed" in ended.err.splitlines()[-1]
    assert (await hub.agent(agent.id)).state is State.KILLED


async def test_what_is_listed_can_be_piped(site: HubSite, hub: Client) -> None:
    held = [(await hub.spawn(HELD)).id for _ in range(3)]
    await hub.kill(held[0])

    unfinished = await felloe(site, "ps", "--quiet")
    everything = await felloe(site, "ps", "--all", "--json")
    table = await felloe(site, "ps")

    assert unfinished.out.split() == [held[2], held[1]]
    assert [agent["id"] for agent in json.loads(everything.out)] == held[::-1]
    assert held[1][-8:] in table.out
    assert "held: release it" in table.out


async def test_types_queues_and_events_are_reached_from_the_shell(site: HubSite) -> None:
    catalogue = site.folder / "types.toml"
    catalogue.write_text(
        '[types.hello]\ncommand = ["/bin/echo", "hello"]\ndescription = "Says hello."\n'
    )

    put = await felloe(site, "types", "put", str(catalogue))
    listed = await felloe(site, "types", "list")
    spawned = await felloe(site, "spawn", "--type", "hello", "--hold", "--label", "a=b")
    released = await felloe(site, "release", spawned.out.strip())
    paused = await felloe(site, "queue", "pause", SPOKE)
    counts = await felloe(site, "queue", "--json")
    events = await felloe(site, "events", "--agent", spawned.out.strip())
    spokes = await felloe(site, "spokes", "--json")
    dead = await felloe(site, "dead-letters", "requeue", "--all", "--json")
    status = await felloe(site, "status", spawned.out.strip(), "--json")
    removed = await felloe(site, "remove", spawned.out.strip(), "--json")

    assert put.out == "hello\n"
    assert "Says hello." in listed.out
    assert "pending" in released.out
    assert "paused" in paused.out
    assert json.loads(counts.out)["total"]["counts"]["pending"] == 1
    assert [line.split()[2] for line in events.out.splitlines()] == ["created", "released"]
    assert json.loads(spokes.out)[0]["id"] == SPOKE
    assert json.loads(dead.out)["done"] == 0
    assert json.loads(status.out)["live"] is False
    assert json.loads(removed.out)["reason"] == "removed"


@pytest.mark.parametrize(
    ("args", "token", "status", "said"),
    [
        (("spawn", "--type", "nobody"), TOKEN, 126, "no agent type `nobody`"),
        (("spawn", "--priority", "11", "--", "x"), TOKEN, 126, "priority"),
        (("release", "01a20287-f0d6-7000-9bd9-1814fe3c805c"), TOKEN, 126, "no agent"),
        (("ps",), "wrong", 126, "token"),
        (("--hub", "http://127.0.0.1:1", "ps"), TOKEN, 125, "no answer from the hub"),
        (("dead-letters", "requeue"), TOKEN, 126, "--all"),
        (("spawn", "--no-such-option"), TOKEN, 2, "No such option"),
    ],
)
async def test_a_no_is_one_sentence_on_stderr(
    site: HubSite, args: tuple[str, ...], token: str, status: int, said: str
) -> None:
    ended = await felloe(site, *args, token=token)

    assert ended.status == status, ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


async def test_the_hub_as_a_process_takes_a_free_port_and_stops_when_told(tmp_path: Path) -> None:
    nats = NatsServer(tmp_path)
    nats.start()
    site = HubSite(tmp_path)
    settings = {
        "FELLOE_HUB_HTTP_PORT": "0",
        "FELLOE_HUB_HTTP_TOKEN_FILE": str(tmp_path / "token"),
        "FELLOE_HUB_DATABASE_FILE": str(tmp_path / "hub.db"),
        "FELLOE_HUB_KEYS_HUB": str(site.settings.keys.hub),
        "FELLOE_HUB_KEYS_SPOKES": str(site.settings.keys.spokes),
        "FELLOE_HUB_NATS_URL": nats.url,
        "FELLOE_HUB_TIMING_STOP_S": "2",
    }
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "serve", env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            async for line in process.stderr:
                said = json.loads(line)
                if said["event"] == "hub_listens":
                    break
            async with Client(said["url"], TOKEN) as hub:
                agent = await hub.spawn(HELD)
                async with httpx.AsyncClient(
                    base_url=said["url"],
                    headers={"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"},
                    trust_env=False,
                ) as http:
                    watching = asyncio.create_task(http.get(f"/v1/agents/{agent.id}/events"))
                    await asyncio.sleep(0.3)
                    process.send_signal(signal.SIGTERM)
                    assert (await watching).text.count("event: created") == 1
            assert await process.wait() == 0
            rest = (await process.stderr.read()).decode()
        assert "Traceback" not in rest, rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        nats.kill()


async def test_an_address_that_is_taken_is_said_by_its_setting(site: HubSite) -> None:
    settings = {
        "FELLOE_HUB_HTTP_PORT": str(site.port),
        "FELLOE_HUB_HTTP_TOKEN": TOKEN,
        "FELLOE_HUB_DATABASE_FILE": str(site.folder / "other.db"),
        "FELLOE_HUB_KEYS_HUB": str(site.settings.keys.hub),
        "FELLOE_HUB_KEYS_SPOKES": str(site.settings.keys.spokes),
        "FELLOE_HUB_NATS_URL": site.nats.url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub", "serve", env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 125
    assert b"cannot listen on 127.0.0.1" in err
    assert b"Traceback" not in err


async def test_an_interrupted_command_leaves_the_agent_alone_and_says_so(
    site: HubSite, hub: Client
) -> None:
    environment = {
        **os.environ,
        "FELLOE_URL": site.url,
        "FELLOE_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hub.cli.felloe", "spawn", "--follow", "--hold", "--", "/bin/x", env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            agent = (await process.stderr.readline()).decode().split()[-1]
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 130
    assert f"felloe kill {agent}" in err.decode()
    assert "Traceback" not in err.decode()
    assert (await hub.agent(agent)).state is State.HELD


async def test_the_output_of_an_absent_site_is_no_empty_output(tmp_path: Path) -> None:
    async with hub_site(tmp_path, suspect_s=0.5) as site, site.client() as hub:
        async with spoke_peer(site) as peer:
            agent = await hub.spawn(SpawnRequest(command=["a"]))
            spawned = await peer.next_command()
            await peer.ask(
                [peer.event(EventKind.QUEUED, spawned), peer.event(EventKind.RUNNING, spawned)]
            )
        await asyncio.sleep(0.7)
        ended = await felloe(site, "logs", agent.id)

    assert ended.status == 125
    assert f"absent: spoke {SPOKE} is away" in ended.err
