"""The REST API on a real hub with a real NATS: what it answers, and what it answers to nonsense."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from hub.client import Client
from hub.schemas import AgentType, AgentView, Problem, SpawnRequest
from shared import clock
from shared.errors import ConflictError, NotAuthenticatedError, NotFoundError, UnavailableError
from shared.lifecycle import State
from shared.messages import (
    EventKind,
    Exit,
    ExitKind,
    Kill,
    Pause,
    Remove,
    Reply,
    Resume,
    Spawn,
    SpokeHeader,
    Status,
)
from shared.subjects import logs
from shared.trust import seal_report
from tests.helpers.hub_site import SPOKE, TOKEN, HubSite, hub_site, spoke_peer
from tests.helpers.spoke_peer import SpokePeer

HELD = SpawnRequest(command=["/bin/true"], hold=True)
LIMIT = 1_000_000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[HubSite]:
    async with hub_site(tmp_path, max_body_bytes=LIMIT) as running:
        yield running


@pytest.fixture
async def hub(site: HubSite) -> AsyncIterator[Client]:
    async with site.client() as client:
        yield client


def problem_in(answer: httpx.Response) -> Problem:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = msgspec.json.decode(answer.content, type=Problem)
    assert problem.status == answer.status_code
    assert problem.type == f"urn:felloe:problem:{problem.code}"
    return problem


def header_of(peer: SpokePeer) -> SpokeHeader:
    return SpokeHeader(
        federation=peer.federation, iss=peer.name, inc=peer.incarnation, iat=clock.now_ms()
    )


async def play(peer: SpokePeer, *, exit_code: int = 0) -> Spawn:
    """Accept the next spawn and report that it ended."""
    command = await peer.next_command()
    assert isinstance(command.item, Spawn)
    kind = EventKind.SUCCEEDED if exit_code == 0 else EventKind.FAILED
    end = Exit(kind=ExitKind.EXITED, code=exit_code, started_ms=1, ended_ms=2)
    reason = "" if exit_code == 0 else f"exited with {exit_code}"
    await peer.ask(
        [
            peer.event(EventKind.QUEUED, command),
            peer.event(EventKind.RUNNING, command),
            peer.event(kind, command, exit=end, reason=reason),
        ]
    )
    return command.item


# --- spawn -------------------------------------------------------------------------------------------


async def test_a_spawn_is_accepted_and_says_where_the_agent_is(site: HubSite) -> None:
    async with site.http() as http:
        answer = await http.post("/v1/agents", json={"command": ["/bin/true"], "priority": "high"})
        again = await http.get(answer.headers["location"])

    agent = msgspec.json.decode(again.content, type=AgentView)
    assert answer.status_code == 202
    assert (agent.state, agent.priority.level, agent.priority.name) == (State.PENDING, 8, "high")
    assert agent.reason == f"{SPOKE}: not connected"
    assert agent.position == 1


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/agents/"])
async def test_both_ways_to_the_spawn_route_behave_the_same(site: HubSite, path: str) -> None:
    headers = {"Idempotency-Key": "once"}
    async with site.http() as http:
        first = await http.post(path, json={"command": ["a"]}, headers=headers)
        second = await http.post(path, json={"command": ["a"]}, headers=headers)
        other = await http.post(path, json={"command": ["b"]}, headers=headers)
        wrong = await http.post(path, json={"command": ["b"], "priority": 0})
        bare = await http.post(path, json={}, headers={"Authorization": ""})

    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    assert problem_in(other).code == "idempotency_conflict"
    assert (wrong.status_code, problem_in(wrong).errors[0].field) == (400, "priority")
    assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")


async def test_the_callers_trace_travels_in_the_signed_command(site: HubSite) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with spoke_peer(site) as peer, site.http() as http:
        await http.post("/v1/agents", json={"command": ["a"]}, headers={"traceparent": given})
        assert (await peer.next_command()).item.trace == given

        await http.post(
            "/v1/agents", json={"command": ["a"]}, headers={"traceparent": "00-0-0-00"}
        )
        made = (await peer.next_command()).item.trace
        assert made != "00-0-0-00"
        assert len(made) == len(given)


async def test_each_item_of_a_batch_has_its_own_result(site: HubSite, hub: Client) -> None:
    first = await hub.spawn(HELD, key="taken")
    body = {
        "agents": [
            {"command": ["a"]},
            {"type": "nobody"},
            5,
            {"command": ["b"]},
            {"command": ["a"], "x": 1},
        ],
        "idempotency_keys": ["a-key", None, None, "taken", None],
    }
    async with site.http() as http:
        answer = (await http.post("/v1/agents/batch", json=body)).json()

    codes = [None if r["problem"] is None else r["problem"]["code"] for r in answer["results"]]
    assert codes == [None, "unknown_type", "malformed", "idempotency_conflict", "malformed"]
    assert (answer["accepted"], answer["refused"]) == (1, 4)
    assert [r["index"] for r in answer["results"]] == [0, 1, 2, 3, 4]
    assert (await hub.agent(first.id)).state is State.HELD


async def test_a_batch_of_a_thousand_is_accepted_whole(hub: Client) -> None:
    result = await hub.spawn_batch([HELD] * 1_000)

    assert (result.accepted, result.refused) == (1_000, 0)
    assert len({r.agent.id for r in result.results if r.agent}) == 1_000
    assert (await hub.queues()).total.counts.pending == 1_000


# --- nonsense ----------------------------------------------------------------------------------------

A = {"command": ["a"]}


Row = tuple[str, str, dict[str, Any], int, str]
NONSENSE: list[Row] = [
    ("GET", "/v1/agents/nobody", {}, 404, "not_found"),
    ("GET", "/v1/agents/01a20287-f0d6-7000-9bd9-1814fe3c805c/logs", {}, 404, "not_found"),
    ("GET", "/v1/agents/01a20287-f0d6-7000-9bd9-1814fe3c805c/events", {}, 404, "not_found"),
    ("POST", "/v1/agents/nobody/kill", {}, 404, "not_found"),
    ("DELETE", "/v1/agents/nobody", {}, 404, "not_found"),
    ("GET", "/v1/nowhere", {}, 404, "not_found"),
    ("GET", "/v1/spokes/nobody", {}, 404, "not_found"),
    ("POST", "/v1/queues/nobody/pause", {}, 404, "not_found"),
    ("PUT", "/v1/agents", {"json": A}, 405, "method_not_allowed"),
    ("PATCH", "/v1/types/a", {"json": A}, 405, "method_not_allowed"),
    ("POST", "/v1/agents", {"content": b"{"}, 400, "malformed"),
    ("POST", "/v1/agents", {"content": b"\xff"}, 400, "malformed"),
    ("POST", "/v1/agents", {"content": b'{"command": ["\\ud800"]}'}, 400, "malformed"),
    ("POST", "/v1/agents", {"content": b"[" * 50_000}, 400, "malformed"),
    ("POST", "/v1/agents", {"content": b""}, 400, "malformed"),
    ("POST", "/v1/agents", {"json": {**A, "unknown": 1}}, 400, "malformed"),
    ("POST", "/v1/agents", {"json": {**A, "priority": 11}}, 400, "malformed"),
    ("POST", "/v1/agents", {"json": {**A, "max_retries": -1}}, 400, "malformed"),
    ("POST", "/v1/agents", {"json": {"type": "nobody"}}, 422, "unknown_type"),
    ("POST", "/v1/agents", {"json": {**A, "on_lost": "rerun"}}, 422, "not_supported_yet"),
    ("POST", "/v1/agents", {"content": b"x" * (LIMIT + 1)}, 413, "too_large"),
    ("PUT", "/v1/types/a", {"content": b"x" * (LIMIT + 1)}, 413, "too_large"),
    ("POST", "/v1/agents", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
    ("POST", "/v1/agents", {"json": A, "headers": {"Idempotency-Key": "a b"}}, 400, "malformed"),
    ("POST", "/v1/agents/batch", {"json": {"agents": []}}, 400, "malformed"),
    ("POST", "/v1/agents/batch", {"json": {"agents": [A], "idempotency_keys": ["a", "b"]}}, 422, "bad_input"),
    ("GET", "/v1/agents?limit=501", {}, 400, "malformed"),
    ("GET", "/v1/agents?limit=1&limit=2", {}, 400, "malformed"),
    ("GET", "/v1/agents?state=sleeping", {}, 400, "malformed"),
    ("GET", "/v1/agents?label=novalue", {}, 400, "malformed"),
    ("GET", "/v1/agents?cursor=x", {}, 400, "malformed"),
    ("GET", "/v1/agents?colour=red", {}, 400, "malformed"),
    ("GET", "/v1/events?after=-1", {}, 400, "malformed"),
    ("GET", "/v1/events", {"headers": {"Accept": "text/event-stream", "Last-Event-ID": "x"}}, 422, "bad_input"),
    ("PUT", "/v1/types/a", {"json": {"name": "b", "command": ["x"]}}, 422, "bad_input"),
    ("POST", "/v1/dead-letters/requeue", {"json": {}}, 422, "bad_input"),
]  # fmt: skip


async def test_nonsense_is_a_clear_problem(site: HubSite, subtests: pytest.Subtests) -> None:
    async with site.http() as http:
        for method, path, sent, status, code in NONSENSE:
            headers = {"content-type": "application/json"} if "content" in sent else {}
            answer = await http.request(method, path, **{"headers": headers, **sent})
            with subtests.test(f"{method} {path} → {status} {code}"):
                assert answer.status_code == status, answer.text
                assert problem_in(answer).code == code


async def test_a_body_without_an_announced_length_is_limited_too(site: HubSite) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * (LIMIT // 10)

    async with site.http(**{"content-type": "application/json"}) as http:
        answer = await http.post("/v1/agents", content=endless())

    assert (answer.status_code, problem_in(answer).code) == (413, "too_large")


async def test_without_the_token_nothing_but_health_is_told(site: HubSite) -> None:
    async with site.http() as known, site.http(Authorization="Bearer wrong") as stranger:
        document = (await known.get("/v1/openapi.json")).json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                url = path.replace("{", "").replace("}", "")
                answer = await stranger.request(method, url)
                assert (answer.status_code == 401) == bool(operation["security"]), (method, path)


# --- look and act ------------------------------------------------------------------------------------


async def test_pages_show_every_agent_once_newest_first(hub: Client) -> None:
    made = [(await hub.spawn(HELD)).id for _ in range(7)]

    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await hub.agents(limit=3, cursor=cursor)
        seen += [agent.id for agent in page.agents]
        cursor = page.next
        if cursor is None:
            break

    assert seen == sorted(made, reverse=True)


async def test_lists_are_narrowed_by_all_filters_together(hub: Client) -> None:
    await hub.put_type(AgentType(name="lint", command=["/bin/lint"]))
    plain = await hub.spawn(
        SpawnRequest(command=["a"], labels={"team": "a/b", "x": "1"}, hold=True)
    )
    typed = await hub.spawn(SpawnRequest(type="lint", labels={"team": "a/b"}))

    async def ids(**wanted: Any) -> set[str]:
        return {agent.id for agent in (await hub.agents(**wanted)).agents}

    assert await ids(labels={"team": "a/b"}) == {plain.id, typed.id}
    assert await ids(labels={"team": "a/b", "x": "1"}) == {plain.id}
    assert await ids(type="lint") == {typed.id}
    assert await ids(states=["held", "pending"]) == {plain.id, typed.id}
    assert await ids(states=["pending"], labels={"x": "1"}) == set()
    assert await ids(spoke=SPOKE) == set()


async def test_a_held_agent_is_released_once(hub: Client) -> None:
    agent = await hub.spawn(HELD)

    assert (await hub.release(agent.id)).state is State.PENDING
    with pytest.raises(ConflictError, match="only a held one"):
        await hub.release(agent.id)


async def test_a_kill_of_an_agent_that_is_nowhere_is_confirmed_at_once_and_twice_is_once(
    hub: Client,
) -> None:
    agent = await hub.spawn(SpawnRequest(command=["a"]))
    killed = await hub.kill(agent.id, reason="enough")

    assert killed.state is State.KILLED
    assert killed.kill is not None
    assert killed.kill.confirmed_at is not None
    assert await hub.kill(agent.id) == killed


async def test_a_kill_goes_to_the_spoke_and_is_shown_until_it_is_confirmed(
    site: HubSite, hub: Client
) -> None:
    async with spoke_peer(site) as peer:
        agent = await hub.spawn(SpawnRequest(command=["a"]))
        spawned = await peer.next_command()
        await peer.ask(
            [peer.event(EventKind.QUEUED, spawned), peer.event(EventKind.RUNNING, spawned)]
        )

        asked = await hub.kill(agent.id, grace_s=0.5)
        order = await peer.next_command()
        assert isinstance(order.item, Kill)
        assert order.item.grace_ms == 500
        assert asked.state is State.RUNNING
        assert asked.kill is not None
        assert asked.kill.confirmed_at is None
        with pytest.raises(ConflictError) as caught:
            await hub.remove(agent.id)
        assert caught.value.code == "running"

        killed = Exit(kind=ExitKind.KILLED, started_ms=1, ended_ms=2)
        await peer.ask(
            [
                peer.event(EventKind.KILL_ACCEPTED, order),
                peer.event(EventKind.KILLED, order, exit=killed),
            ]
        )
        done = await hub.agent(agent.id)

    assert done.state is State.KILLED
    assert done.kill is not None
    assert done.kill.confirmed_at is not None


async def test_removing_an_agent_that_waits_ends_it(site: HubSite, hub: Client) -> None:
    waiting = await hub.spawn(HELD)
    assert (await hub.remove(waiting.id)).reason == "removed"

    async with spoke_peer(site) as peer:
        queued = await hub.spawn(SpawnRequest(command=["a"]))
        command = await peer.next_command()
        await peer.ask([peer.event(EventKind.QUEUED, command)])
        await hub.remove(queued.id)
        assert isinstance((await peer.next_command()).item, Remove)


async def test_the_live_status_is_the_spokes_own_word(site: HubSite, hub: Client) -> None:
    agent = await hub.spawn(SpawnRequest(command=["a"]))
    absent = await hub.status(agent.id)
    assert (absent.live, absent.reason) == (False, "not placed yet")

    async with spoke_peer(site) as peer:
        spawned = await peer.next_command()
        await peer.ask(
            [peer.event(EventKind.QUEUED, spawned), peer.event(EventKind.RUNNING, spawned)]
        )
        silent = await hub.status(agent.id)
        assert not silent.live
        assert "did not answer" in silent.reason
        while not peer.commands.empty():
            peer.commands.get_nowait()

        asking = asyncio.create_task(hub.status(agent.id))
        question = (await peer.next_command()).item
        assert isinstance(question, Status)
        said = Reply(
            cmd=question.id, agent=agent.id, gen=1, known=True, state="running", attempt=1, fence=1, position=None,
            since=1_800_000_000_000, processes=3, output_bytes=42,
        )  # fmt: skip
        await peer.bus.publish(
            logs(SPOKE, question.reader), seal_report(header_of(peer), [said], peer.signer)
        )
        live = await asking

    assert (live.live, live.state, live.processes, live.output_bytes) == (True, "running", 3, 42)


# --- spokes, queues, types, dead letters -------------------------------------------------------------


async def test_a_spoke_is_shown_with_what_it_offers(site: HubSite, hub: Client) -> None:
    before = await hub.spoke(SPOKE)
    assert (before.state, before.slots) == ("absent", 0)

    async with spoke_peer(site):
        spoke = await hub.spoke(SPOKE)

    assert (spoke.state, spoke.slots, spoke.credit) == ("online", 4, 12)
    assert spoke.sandboxes == ["bubblewrap", "simulated"]
    assert (await hub.spokes()).spokes[0].id == SPOKE


async def test_pausing_reaches_the_spoke_and_is_shown(site: HubSite, hub: Client) -> None:
    async with spoke_peer(site) as peer:
        paused = await hub.pause(SPOKE)
        assert isinstance((await peer.next_command()).item, Pause)
        assert paused.spokes[0].paused
        assert paused.total.paused

        resumed = await hub.resume()
        assert isinstance((await peer.next_command()).item, Resume)
        assert not resumed.total.paused


async def test_the_five_counts_follow_the_agents(site: HubSite, hub: Client) -> None:
    await hub.spawn(HELD)
    await hub.spawn(SpawnRequest(command=["a"], delay_s=3_600))
    async with spoke_peer(site) as peer:
        await hub.spawn(SpawnRequest(command=["a"]))
        await play(peer)
        await hub.spawn(SpawnRequest(command=["a"]))
        await play(peer, exit_code=1)
        counts = (await hub.queues()).total.counts
        of_spoke = (await hub.queues()).spokes[0]

    assert (counts.pending, counts.delayed, counts.completed, counts.failed) == (1, 1, 1, 1)
    assert (of_spoke.counts.completed, of_spoke.dead_letters) == (1, 1)


async def test_the_catalogue_is_changed_and_used_at_once(hub: Client) -> None:
    kind = AgentType(name="lint", command=["/bin/lint"], priority=2, timeout_s=9)
    assert await hub.put_type(kind) == kind
    assert (await hub.agent_types()).types == [kind]
    assert await hub.agent_type("lint") == kind

    agent = await hub.spawn(SpawnRequest(type="lint", args=["src"]))
    assert (agent.type, agent.command, agent.priority.level) == ("lint", ["/bin/lint", "src"], 2)

    await hub.delete_type("lint")
    with pytest.raises(NotFoundError):
        await hub.agent_type("lint")
    with pytest.raises(NotFoundError):
        await hub.delete_type("lint")


async def test_dead_letters_are_listed_sent_back_and_let_go(site: HubSite, hub: Client) -> None:
    async with spoke_peer(site) as peer:
        agents = [await hub.spawn(SpawnRequest(command=["a"], max_retries=0)) for _ in range(2)]
        for _ in agents:
            await play(peer, exit_code=1)
        listed = [agent.id for agent in (await hub.dead_letters()).agents]
        assert set(listed) == {agent.id for agent in agents}

        back = await hub.requeue([listed[0], "01a20287-f0d6-7000-9bd9-1814fe3c805c"])
        assert [result.done for result in back.results] == [True, False]
        assert (back.done, back.left) == (1, 1)
        again = await play(peer)
        assert (again.agent, again.gen) == (listed[0], 2)

        gone = await hub.discard()
        assert (gone.done, gone.left) == (1, 0)
        assert (await hub.agent(listed[1])).state is State.FAILED


# --- health ------------------------------------------------------------------------------------------


async def test_readiness_names_what_is_away_and_comes_back(site: HubSite, hub: Client) -> None:
    assert (await hub.ready()).ok
    site.nats.kill()
    async with asyncio.timeout(10):
        while (state := await hub.ready()).ok:
            await asyncio.sleep(0.05)
    assert "nats" in {part for part, said in state.parts.items() if said != "ok"}
    async with site.http() as http:
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
    assert (await hub.spawn(HELD)).state is State.HELD

    site.nats.start()
    async with asyncio.timeout(10):
        while not (await hub.ready()).ok:
            await asyncio.sleep(0.05)


async def test_metrics_count_requests_by_route_and_not_by_path(site: HubSite, hub: Client) -> None:
    agent = await hub.spawn(HELD)
    await hub.agent(agent.id)
    async with site.http() as http:
        await http.get("/v1/no/such/path")
        text = (await http.get("/metrics")).text

    assert 'felloe_http_requests_total{method="POST",route="/v1/agents",status="202"} 1.0' in text
    assert 'route="/v1/agents/{agent_id}",status="200"} 1.0' in text
    assert 'felloe_http_requests_total{method="none",route="none",status="404"} 1.0' in text
    assert agent.id not in text
    assert "no/such" not in text


async def test_the_seeds_figures_are_there(site: HubSite, hub: Client) -> None:
    await hub.spawn(HELD)
    async with spoke_peer(site), site.http() as http:
        health = (await http.get("/v1/agents/health")).json()
        metrics = (await http.get("/v1/agents/metrics")).json()
        status = (await http.get("/v1/agents/queue/status")).json()

    assert (health["spokes_online"], health["healthy"]) == (1, 0)
    assert (metrics["task_queue_depth"], metrics["agent_utilization_ratio"]) == (1, 0.0)
    assert status["total"]["counts"]["pending"] == 1


async def test_a_hub_that_is_not_there_is_said_with_its_address(site: HubSite) -> None:
    async with Client("http://127.0.0.1:1", TOKEN) as nobody:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            await nobody.queues()
    async with Client(site.url, "wrong") as stranger:
        with pytest.raises(NotAuthenticatedError, match="token"):
            await stranger.queues()
