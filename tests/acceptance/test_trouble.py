"""kill -9 of each part in the middle of the main job, one at a time: it completes, and nothing is doubled.

Agents cannot write to the host, so what they did is counted in their output: each attempt says once that it began,
with a mark that no other life has.
"""

import asyncio
import re
import signal

import httpx
import pytest

from hub.dev.stack import Stack
from hub.dev.watcher import started
from tests.helpers.stack import alive, eventually, http, new_stack, output, spawn, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

# Long enough that the trouble comes in the middle, more of them than slots, so that some still wait in a queue.
STEPS = 6
AGENTS = 20
MARK = re.compile(r"mark=(\w+)")


async def is_online(api: httpx.AsyncClient, *spokes: str) -> bool:
    seen = {
        spoke["id"]: spoke["state"] for spoke in (await api.get("/v1/spokes")).json()["spokes"]
    }
    return all(seen[spoke] == "online" for spoke in spokes)


async def start_work(api: httpx.AsyncClient) -> list[str]:
    """Spawn real agents at both spokes, more than there are slots, and wait until some run."""
    agents = [
        await spawn(api, type="steps", args=[str(STEPS), "0.25"], spoke=spoke)
        for _ in range(AGENTS // 2)
        for spoke in ("zurich", "geneva")
    ]
    await until(api, agents[0], "running")
    await until(api, agents[1], "running")
    return agents


async def check_work(api: httpx.AsyncClient, agents: list[str]) -> None:
    """Every agent succeeded in its first attempt, and had one life from its first line to its last."""
    for agent in agents:
        seen = await until(api, agent, "succeeded", "failed", "killed", "lost", seconds=60)
        assert (seen["state"], seen["attempt"], seen["generation"]) == ("succeeded", 1, 1), seen
        lines = await eventually(lambda agent=agent: output(api, agent), what=f"output of {agent}")
        assert [line for line in lines if line.startswith("step ")] == [
            f"step {n}/{STEPS}" for n in range(1, STEPS + 1)
        ]
        assert len(MARK.findall("\n".join(lines))) == 2
        assert len(set(MARK.findall("\n".join(lines)))) == 1
        kinds = [
            event["kind"]
            for event in (await api.get(f"/v1/agents/{agent}/events")).json()["events"]
        ]
        assert kinds.count("running") == 1, kinds
        assert kinds.count("succeeded") == 1, kinds


@pytest.mark.parametrize("part", ["hub", "zurich", "nats", "valkey-zurich"])
async def test_kill_minus_nine_in_the_middle_loses_and_doubles_nothing(
    stack: Stack, api: httpx.AsyncClient, part
):
    agents = await start_work(api)
    before = stack.children[part].kill(signal.SIGKILL)
    await eventually(lambda: went_on(stack, part, before))
    await check_work(api, agents)
    await eventually(lambda: is_online(api, "zurich", "geneva"))


@pytest.mark.parametrize("part", ["nats", "valkey-zurich", "zurich"])
async def test_work_is_taken_and_goes_on_after_a_part_was_away_for_a_while(
    stack: Stack, api: httpx.AsyncClient, part
):
    agents = await start_work(api)
    stack.children[part].hold()
    try:
        agents += [
            await spawn(api, type="steps", args=[str(STEPS), "0.1"], spoke="zurich")
            for _ in range(3)
        ]
        await asyncio.sleep(2)
    finally:
        stack.children[part].go()
    await check_work(api, agents)
    await eventually(lambda: is_online(api, "zurich", "geneva"))


async def test_a_kill_that_is_ordered_while_the_spoke_is_away_is_confirmed_when_it_is_back(
    stack: Stack, api: httpx.AsyncClient
):
    agent = await spawn(api, type="stubborn", spoke="geneva")
    await until(api, agent, "running")
    stack.children["geneva"].hold()
    try:
        ordered = (await api.post(f"/v1/agents/{agent}/kill")).json()
        await asyncio.sleep(1)
        waiting = (await api.get(f"/v1/agents/{agent}")).json()
        assert ordered["kill"]["requested_at"]
        assert waiting["kill"]["confirmed_at"] is None
    finally:
        stack.children["geneva"].go()
    seen = await until(api, agent, "killed", seconds=30)
    assert seen["kill"]["confirmed_at"]
    assert seen["attempt"] <= 1


async def test_an_absent_spoke_is_named_and_its_agents_are_stale(
    stack: Stack, api: httpx.AsyncClient
):
    agent = await spawn(api, type="steps", args=["30", "0.3"], spoke="geneva")
    await until(api, agent, "running")
    stack.children["geneva"].hold()
    try:

        async def is_stale():
            return (await api.get(f"/v1/agents/{agent}")).json()["stale"]

        assert await eventually(is_stale)
        assert not await is_online(api, "geneva")
        live = (await api.get(f"/v1/agents/{agent}/status")).json()
        assert live["live"] is False
        assert "geneva" in live["reason"]
    finally:
        stack.children["geneva"].go()
    await api.post(f"/v1/agents/{agent}/kill")
    await until(api, agent, "killed", seconds=30)
    await eventually(lambda: is_online(api, "geneva"))


async def went_on(stack: Stack, part: str, before: int | None) -> bool:
    """Tell whether the part runs again under another pid."""
    return stack.children[part].pid not in (None, before)


# --- with a stack of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["nats", "valkey-zurich"])
async def test_a_part_that_is_down_at_the_start_is_waited_for_and_named(tmp_stack_folder, part):
    stack = new_stack(tmp_stack_folder)
    try:
        stack.prepare()
        for name, child in stack.children.items():
            if name != part:
                child.start()
        async with http(stack) as api:
            if part == "nats":
                health = await eventually(
                    lambda: not_ready(api), what="/readyz says what is missing"
                )
                assert "nats" in health["parts"]
                assert health["parts"]["nats"] != "ok"
            else:
                await eventually(lambda: is_online(api, "geneva"))
                assert not await is_online(api, "zurich")
                waits = await spawn(api, command=["true"], spoke="zurich")
                assert (await until(api, waits, "pending"))["reason"]
            stack.children[part].start()
            await stack.ready(timeout_s=20)
            agent = await spawn(api, command=["echo", "back"], spoke="zurich")
            await until(api, agent, "succeeded")
            assert await output(api, agent) == ["back"]
    finally:
        await stack.stop()


async def not_ready(api: httpx.AsyncClient):
    answer = await api.get("/readyz")
    return answer.json() if answer.status_code == 503 else None


async def test_a_stack_that_is_stopped_and_started_again_comes_back_with_its_agents(
    tmp_stack_folder,
):
    async with new_stack(tmp_stack_folder) as stack, http(stack) as api:
        done = await spawn(api, command=["echo", "before"], spoke="zurich")
        await until(api, done, "succeeded")
        held = await spawn(api, command=["echo", "after"], hold=True)
        pids = {child.pid: started(child.pid) for child in stack.children.values() if child.pid}
    assert not alive(pids)
    async with new_stack(tmp_stack_folder) as stack, http(stack) as api:
        assert (await until(api, done, "succeeded"))["spoke"] == "zurich"
        assert await output(api, done) == ["before"]
        await api.post(f"/v1/agents/{held}/release")
        await until(api, held, "succeeded")
        assert await output(api, held) == ["after"]
