"""The main job from outside, through the CLI and HTTP, as a user does it, on the embedded stack."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from hub.dev.stack import Stack
from tests.helpers.stack import eventually, felloe, output, spawn, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

BAD_INPUT = [
    ("an unknown field", {"command": ["true"], "prioritty": 3}, "prioritty"),
    ("a wrong type", {"command": "true"}, "command"),
    ("priority 0", {"command": ["true"], "priority": 0}, "priority"),
    ("priority 11", {"command": ["true"], "priority": 11}, "priority"),
    ("an unknown priority", {"command": ["true"], "priority": "soon"}, "priority"),
    ("negative retries", {"command": ["true"], "max_retries": -1}, "max_retries"),
    ("an unknown type", {"type": "no-such-type"}, "no-such-type"),
    ("no command and no type", {}, "command"),
    ("a command and a type", {"type": "shell", "command": ["true"]}, "not both"),
    ("an empty command", {"command": []}, "command"),
    ("a NUL in a command", {"command": ["a\0b"]}, "command"),
    ("no such sandbox", {"command": ["true"], "sandbox": "docker"}, "sandbox"),
    (
        "a delay and a start",
        {"command": ["true"], "delay_s": 1, "start_at": "2030-01-01T00:00:00Z"},
        "not both",
    ),
    ("a time without zone", {"command": ["true"], "start_at": "2030-01-01T00:00:00"}, "start_at"),
    (
        "a deadline in the past",
        {"command": ["true"], "deadline": "2020-01-01T00:00:00Z"},
        "deadline",
    ),
    (
        "dependencies, for now",
        {"command": ["true"], "after": ["01a20289-0a67-7000-bca9-4582ec912ed8"]},
        "after",
    ),
    ("rerun on loss, for now", {"command": ["true"], "on_lost": "rerun"}, "on_lost"),
    ("stop on partition, for now", {"command": ["true"], "on_partition": "stop"}, "on_partition"),
    ("too much for one command", {"command": ["echo", *["x" * 16_000] * 8]}, "bytes"),
]


# --- with the CLI ----------------------------------------------------------------------------------------


async def test_spawn_follow_prints_the_output_and_ends_as_the_agent_did(stack: Stack):
    done = await felloe(
        stack, "spawn", "--follow", "--max-retries", "0", "--", "sh", "-c", "echo hello; exit 7"
    )
    assert done.out == "hello\n"
    assert done.status == 7, done.err


async def test_a_missing_command_is_a_refusal_and_is_not_retried(stack: Stack):
    done = await felloe(stack, "spawn", "--wait", "--", "/no/such/program")
    assert done.status == 126, done.err


async def test_a_timeout_ends_an_agent_with_status_124(stack: Stack):
    arguments = ("--wait", "--timeout", "500ms", "--grace", "0", "--max-retries", "0")
    done = await felloe(stack, "spawn", *arguments, "--", "sleep", "60")
    assert done.status == 124, done.err


async def test_ps_status_kill_and_show_from_the_command_line(stack: Stack, api: httpx.AsyncClient):
    spawned = await felloe(stack, "spawn", "--type", "stubborn", "--spoke", "zurich")
    agent = spawned.out.strip()
    await until(api, agent, "running")
    listed = await felloe(stack, "ps", "--json")
    assert agent in listed.out
    asked = json.loads((await felloe(stack, "status", agent, "--json")).out)
    assert asked["live"] is True
    assert asked["state"] == "running"
    assert asked["processes"] >= 2
    killed = await felloe(stack, "kill", agent, "--wait")
    assert killed.status == 0, killed.err
    shown = json.loads((await felloe(stack, "show", agent, "--json")).out)
    assert shown["state"] == "killed"
    assert (
        shown["kill"]["requested_at"]
        <= shown["kill"]["accepted_at"]
        <= shown["kill"]["confirmed_at"]
    )
    assert "SIGTERM? No." in (await felloe(stack, "logs", agent)).out


async def test_a_real_agent_lints_the_sources_of_this_repository(stack: Stack):
    done = await felloe(stack, "spawn", "--type", "lint", "--spoke", "geneva", "--follow")
    assert done.status == 0, done.err
    result = json.loads(done.out.splitlines()[-1].removeprefix("result "))
    assert result["hub"]["functions"] > 100
    assert result["shared"]["files"] > 10


async def test_spokes_types_and_queue_are_shown(stack: Stack):
    spokes, types, queue = await asyncio.gather(
        felloe(stack, "spokes", "--json"),
        felloe(stack, "types", "list", "--json"),
        felloe(stack, "queue", "--json"),
    )
    assert {"zurich", "geneva"} <= {spoke["id"] for spoke in json.loads(spokes.out)}
    assert "stubborn" in types.out
    assert set(json.loads(queue.out)["total"]["counts"]) == {
        "pending",
        "active",
        "delayed",
        "completed",
        "failed",
    }


async def test_a_hub_that_is_not_there_is_said_in_one_sentence(stack: Stack):
    done = await felloe(stack, "--hub", "http://127.0.0.1:9", "ps")
    assert done.status == 125
    assert "127.0.0.1:9" in done.err
    assert "Traceback" not in done.err


# --- spawning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "body", "named"), BAD_INPUT, ids=[row[0] for row in BAD_INPUT])
async def test_bad_input_is_refused_and_the_field_is_named(
    api: httpx.AsyncClient, name, body, named
):
    answer = await api.post("/v1/agents", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert named in answer.text
    assert answer.json()["code"]


async def test_what_is_no_json_at_all_is_a_clear_400(api: httpx.AsyncClient):
    answer = await api.post(
        "/v1/agents", content=b"{not json", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["status"] == 400


async def test_a_body_beyond_the_limit_is_413(api: httpx.AsyncClient):
    answer = await api.post(
        "/v1/agents", content=b" " * (17 * 1024**2), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


async def test_without_the_token_nothing_is_told(stack: Stack):
    async with httpx.AsyncClient(base_url=stack.plan.url, trust_env=False) as stranger:
        assert (await stranger.get("/v1/agents")).status_code == 401
        assert (await stranger.get("/healthz")).status_code == 200


async def test_an_idempotency_key_spawns_once_and_another_body_is_a_conflict(
    api: httpx.AsyncClient,
):
    body, headers = {"command": ["true"]}, {"Idempotency-Key": "acceptance-once"}
    first = await api.post("/v1/agents", json=body, headers=headers)
    again = await api.post("/v1/agents", json=body, headers=headers)
    other = await api.post("/v1/agents", json={"command": ["false"]}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert again.json()["id"] == first.json()["id"]


async def test_a_batch_has_a_result_for_each_item_and_is_not_all_or_nothing(
    api: httpx.AsyncClient,
):
    good, bad = {"sandbox": "simulated"}, {"command": ["true"], "priority": 99}
    answer = await api.post("/v1/agents/batch", json={"agents": [good, bad, good]})
    result = answer.json()
    assert answer.status_code == 200
    assert (result["accepted"], result["refused"]) == (2, 1)
    assert [item["agent"] is not None for item in result["results"]] == [True, False, True]
    assert result["results"][1]["problem"]["code"]
    for item in result["results"][::2]:
        await until(api, item["agent"]["id"], "succeeded")


async def test_a_thousand_agents_in_one_batch_all_succeed_once(api: httpx.AsyncClient):
    label = {"labels": {"of": "thousand"}}
    body = {"agents": [{"sandbox": "simulated", **label}] * 1_000}
    answer = await api.post("/v1/agents/batch", json=body)
    assert answer.json()["accepted"] == 1_000
    ids = {item["agent"]["id"] for item in answer.json()["results"]}

    async def all_succeeded():
        query = {"label": "of=thousand", "state": "succeeded", "limit": 500}
        page = (await api.get("/v1/agents", params=query)).json()
        seen = {agent["id"]: agent for agent in page["agents"]}
        while page["next"]:
            page = (await api.get("/v1/agents", params={**query, "cursor": page["next"]})).json()
            seen |= {agent["id"]: agent for agent in page["agents"]}
        return seen if len(seen) == 1_000 else None

    seen = await eventually(all_succeeded, seconds=40)
    assert set(seen) == ids
    assert {agent["attempt"] for agent in seen.values()} == {1}


# --- waiting ---------------------------------------------------------------------------------------------


async def test_a_selector_that_matches_nothing_is_accepted_and_says_why_it_waits(
    api: httpx.AsyncClient,
):
    agent = await spawn(api, command=["true"], selector={"site": "atlantis"})
    seen = await until(api, agent, "pending")
    assert "atlantis" in seen["reason"]
    removed = await api.delete(f"/v1/agents/{agent}")
    assert removed.status_code == 202
    assert (await until(api, agent, "killed"))["reason"] == "removed"


async def test_a_held_agent_waits_for_its_release(api: httpx.AsyncClient):
    agent = await spawn(api, command=["true"], hold=True)
    await asyncio.sleep(0.3)
    assert (await until(api, agent, "held"))["reason"]
    assert (await api.post(f"/v1/agents/{agent}/release")).status_code == 200
    await until(api, agent, "succeeded")
    assert (await api.post(f"/v1/agents/{agent}/release")).status_code == 409


async def test_a_delayed_agent_starts_no_sooner(api: httpx.AsyncClient):
    agent = await spawn(api, command=["true"], delay_s=1.5)
    assert (await until(api, agent, "waiting"))["reason"]
    seen = await until(api, agent, "succeeded")
    assert seen["started_at"] >= seen["start_at"]


async def test_a_deadline_that_passes_before_the_start_is_expired(api: httpx.AsyncClient):
    deadline = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    agent = await spawn(api, command=["true"], selector={"site": "atlantis"}, deadline=deadline)
    await until(api, agent, "expired")


async def test_a_paused_queue_starts_nothing_until_it_is_resumed(api: httpx.AsyncClient):
    assert (await api.post("/v1/queues/geneva/pause")).status_code == 200

    async def is_paused(wanted: bool):
        return (await api.get("/v1/spokes/geneva")).json()["paused"] is wanted

    try:
        await eventually(lambda: is_paused(True))
        agent = await spawn(api, command=["true"], spoke="geneva")
        seen = await until(api, agent, "queued", "placed", "pending")
        await asyncio.sleep(0.5)
        seen = (await api.get(f"/v1/agents/{agent}")).json()
        assert seen["state"] in {"queued", "pending"}
        assert seen["reason"]
    finally:
        assert (await api.post("/v1/queues/geneva/resume")).status_code == 200
    await eventually(lambda: is_paused(False))
    await until(api, agent, "succeeded")


async def test_priority_decides_who_goes_first_when_slots_are_taken(api: httpx.AsyncClient):
    blockers = [
        await spawn(
            api, sandbox="simulated", simulation={"duration_s": 2}, spoke="geneva", priority=10
        )
        for _ in range(8)
    ]
    low = await spawn(api, sandbox="simulated", spoke="geneva", priority="bulk")
    high = await spawn(api, sandbox="simulated", spoke="geneva", priority="high")
    ended = [await until(api, agent, "succeeded") for agent in (*blockers, low, high)]
    assert ended[-1]["started_at"] <= ended[-2]["started_at"]


# --- ending ----------------------------------------------------------------------------------------------


async def test_used_up_retries_make_a_dead_letter_that_can_be_requeued_and_discarded(
    api: httpx.AsyncClient,
):
    agent = await spawn(
        api, command=["sh", "-c", "echo attempt $FELLOE_ATTEMPT; exit 3"], max_retries=1
    )
    seen = await until(api, agent, "failed")
    assert seen["dead_letter"] is True
    assert seen["attempt"] == 2
    assert seen["exit"]["code"] == 3
    assert await output(api, agent) == ["attempt 1", "attempt 2"]
    requeued = await api.post("/v1/dead-letters/requeue", json={"agents": [agent]})
    assert requeued.json()["done"] == 1

    async def failed_again():
        now = (await api.get(f"/v1/agents/{agent}")).json()
        return now if now["generation"] > seen["generation"] and now["state"] == "failed" else None

    assert (await eventually(failed_again))["dead_letter"] is True
    letters = (await api.get("/v1/dead-letters", params={"limit": 500})).json()["agents"]
    assert agent in {letter["id"] for letter in letters}
    assert (await api.post("/v1/dead-letters/discard", json={"agents": [agent]})).json()[
        "done"
    ] == 1
    seen = (await api.get(f"/v1/agents/{agent}")).json()
    assert seen["state"] == "failed"
    assert seen["dead_letter"] is False


async def test_a_kill_before_the_start_is_confirmed_too(api: httpx.AsyncClient):
    agent = await spawn(api, command=["true"], hold=True)
    assert (await api.post(f"/v1/agents/{agent}/kill")).status_code == 202
    seen = await until(api, agent, "killed")
    assert seen["kill"]["confirmed_at"]


async def test_killing_twice_changes_nothing(api: httpx.AsyncClient):
    agent = await spawn(api, command=["sleep", "60"], grace_s=0)
    await until(api, agent, "running")
    first = await api.post(f"/v1/agents/{agent}/kill")
    second = await api.post(f"/v1/agents/{agent}/kill")
    assert (first.status_code, second.status_code) == (202, 202)
    seen = await until(api, agent, "killed")
    assert seen["kill"]["requested_at"] == first.json()["kill"]["requested_at"]


async def test_an_input_reaches_the_agent_and_the_network_does_not(api: httpx.AsyncClient):
    line = 'cat "$FELLOE_INPUT"; grep -c : /proc/net/dev; env | cut -d= -f1 | sort | tr "\\n" " "'
    agent = await spawn(api, type="shell", args=[line], input="the input\n")
    await until(api, agent, "succeeded")
    lines = await output(api, agent)
    assert lines[0] == "the input"
    assert lines[1] == "1", "only the loopback is there"
    assert "TOKEN" not in lines[2]
    assert "FELLOE_STACK" not in lines[2]


# --- streams ---------------------------------------------------------------------------------------------


async def sse(api: httpx.AsyncClient, path: str, *, stop, headers=None) -> list[dict[str, str]]:
    """Read a stream of events until `stop(event)`."""
    events: list[dict[str, str]] = []
    event: dict[str, str] = {}
    headers = {"Accept": "text/event-stream", **(headers or {})}
    async with asyncio.timeout(20), api.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                event[name] = value
                continue
            if "data" in event:
                events.append(event)
                if stop(event):
                    return events
            event = {}
    return events


async def test_a_broken_event_stream_goes_on_after_the_last_event_id(api: httpx.AsyncClient):
    agent = await spawn(api, command=["true"])
    path = f"/v1/agents/{agent}/events"
    whole = await sse(api, path, stop=lambda event: event["event"] == "succeeded")
    kinds = [event["event"] for event in whole]
    assert kinds[-3:] == ["queued", "running", "succeeded"]
    rest = await sse(
        api,
        path,
        stop=lambda event: event["event"] == "succeeded",
        headers={"Last-Event-ID": whole[-3]["id"]},
    )
    assert [event["id"] for event in rest] == [event["id"] for event in whole[-2:]]


async def test_a_broken_log_stream_goes_on_at_the_byte_where_it_ended(api: httpx.AsyncClient):
    agent = await spawn(
        api, command=["sh", "-c", "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.3; done"]
    )
    path = f"/v1/agents/{agent}/logs"
    first = await sse(api, path, stop=lambda event: "line 2" in event["data"])
    last = next(event["id"] for event in reversed(first) if "id" in event)
    rest = await sse(
        api, path, stop=lambda event: event["event"] == "end", headers={"Last-Event-ID": last}
    )
    text = "".join(json.loads(event["data"])["text"] for event in (*first, *rest))
    assert text == "".join(f"line {n}\n" for n in range(1, 7))


async def test_a_late_reader_gets_all_of_a_finished_agents_output(api: httpx.AsyncClient):
    agent = await spawn(
        api, command=["sh", "-c", "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i; done"]
    )
    await until(api, agent, "succeeded")
    assert await output(api, agent) == [str(n) for n in range(1, 5_001)]


# --- what the wire has -----------------------------------------------------------------------------------


async def test_every_unfinished_agent_says_why_it_waits(api: httpx.AsyncClient):
    waiting = [
        await spawn(api, command=["true"], hold=True),
        await spawn(api, command=["true"], delay_s=60),
        await spawn(api, command=["true"], selector={"site": "atlantis"}),
    ]
    for agent in waiting:
        assert (await api.get(f"/v1/agents/{agent}")).json()["reason"]
        await api.post(f"/v1/agents/{agent}/kill")
        await until(api, agent, "killed")


async def test_the_seeds_health_metrics_and_queue_status_are_there(api: httpx.AsyncClient):
    health, metrics, queue = [
        (await api.get(f"/v1/agents/{path}")).json()
        for path in ("health", "metrics", "queue/status")
    ]
    assert health["spokes_online"] == 2
    assert metrics["counts"].keys() == queue["total"]["counts"].keys()
    assert "felloe_" in (await api.get("/metrics")).text
