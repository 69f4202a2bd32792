"""The steps of the demo: each does one thing to the stack, looks whether what must happen did, and says what was seen.

A step raises UnexpectedError (or any other FelloeError) when something is not as it must be.
"""

import asyncio
import re
import signal
from datetime import datetime
from typing import Final

import msgspec

from hub.client import Client
from hub.dev.attack import Attacker, altered, forged, forged_runs
from hub.dev.desk import UnexpectedError, lines, output, until
from hub.dev.show import Show
from hub.dev.stack import Stack
from hub.schemas import SpawnRequest, SpokeView
from shared.lifecycle import State

ZURICH: Final = "zurich"
GENEVA: Final = "geneva"

_MARK: Final = re.compile(r"mark=\w+ pid=\d+")
_TEXT: Final = (
    "The harbour of Marseille was closed for three days after a storm broke the crane on the east pier. About forty"
    " ships had to wait at sea. The port authority says that repairs will cost two million euros and that a second"
    " crane, planned since 2019, will now be bought at once. Fishermen were paid for the days that they lost."
)


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps stand on."""

    stack: Stack
    client: Client
    show: Show


async def work(demo: Demo) -> str:
    """A Python agent lints and counts our sources at one site, a shell agent reads the prose at the other."""
    async with asyncio.TaskGroup() as tasks:
        linted = tasks.create_task(_work_through(demo, "lint", ZURICH))
        read = tasks.create_task(_work_through(demo, "words", GENEVA))
    _expect(any(line.startswith("result {") for line in linted.result()), "lint gave no result")
    _expect(read.result()[-1:] == ["done"], "words did not come to its end")
    return f"lint at {ZURICH} and words at {GENEVA} succeeded; {len(linted.result() + read.result())} lines followed"


async def status(demo: Demo) -> str:
    """Ask a running agent's own spoke how it stands."""
    agent = await _spawn(demo, SpawnRequest(type="steps", args=["100"], spoke=GENEVA))
    await until(demo.client, agent, State.RUNNING)
    seen = await demo.client.status(agent)
    await demo.client.kill(agent)
    _expect(seen.live, f"{GENEVA} did not answer: {seen.reason}")
    _expect(seen.state == State.RUNNING, f"{GENEVA} says {seen.state}")
    _expect(seen.processes >= 1, "a running agent without a process")
    await until(demo.client, agent, State.KILLED)
    return f"{GENEVA} says itself, signed: {seen.state}, attempt {seen.attempt}, {seen.processes} processes"


async def kill(demo: Demo) -> str:
    """Kill an agent that ignores SIGTERM and has a child; wait for the signed word that both are gone."""
    agent = await _spawn(demo, SpawnRequest(type="stubborn", spoke=GENEVA))
    await _until_line(demo, agent, "begin")
    demo.show.say("kill: SIGTERM first, SIGKILL for the whole sandbox after a grace of 1 s")
    await demo.client.kill(agent)
    ended = await until(demo.client, agent, State.KILLED)
    for line in await output(demo.client, agent):
        demo.show.line("stubborn", line)
    times = ended.kill
    _expect(times is not None and times.confirmed_at is not None, "the kill was not confirmed")
    left = await demo.client.status(agent)
    _expect(left.processes == 0, f"{left.processes} processes are left")
    if times is None or times.accepted_at is None or times.confirmed_at is None:
        raise UnexpectedError("the kill was not accepted")
    accepted, confirmed = (
        _seconds(times.requested_at, at) for at in (times.accepted_at, times.confirmed_at)
    )
    return f"requested, accepted after {accepted:.2f} s, confirmed gone after {confirmed:.2f} s"


async def attack(demo: Demo) -> str:
    """Put commands on NATS that the hub never gave; the spoke refuses them by name and counts them."""
    attacker = await Attacker.listen(demo.stack.plan, ZURICH)
    try:
        agent = await _spawn(demo, SpawnRequest(type="steps", args=["1", "0.1"], spoke=ZURICH))
        captured = await attacker.captured(agent)
        await until(demo.client, agent, State.SUCCEEDED)
        before = await demo.client.spoke(ZURICH)
        tried = {
            "forged with another key": forged(captured, disguised=False),
            "forged under the hub's key id": forged(captured, disguised=True),
            "altered in one letter": altered(captured),
            "replayed byte for byte": captured,
        }
        for name, data in tried.items():
            demo.show.say(f"on the wire: a command {name}, {len(data)} bytes")
            await attacker.put(data)
        counted = await _counted(demo, before)
    finally:
        await attacker.close()
    await _check_no_effect(demo, agent)
    said = ", ".join(f"{name} {n}" for name, n in counted.items())
    return f"{len(tried)} commands without effect; {ZURICH} counted: {said}"


async def survive(demo: Demo) -> str:
    """Kill the daemon under a running agent: the same attempt goes on, and the next daemon adopts it."""
    agent = await _spawn(demo, SpawnRequest(type="steps", args=["8", "0.4"], spoke=ZURICH))
    seen: list[str] = []
    async for line in lines(demo.client, agent):
        demo.show.line("steps", line)
        seen.append(line)
        if line.startswith("step 2/"):
            pid = demo.stack.children[ZURICH].kill(signal.SIGKILL)
            demo.show.say(f"kill -9 {pid}: the daemon of {ZURICH} is gone, its sandbox is not")
    ended = await until(demo.client, agent, State.SUCCEEDED)
    marks = set(_MARK.findall("\n".join(seen)))
    steps = [line for line in seen if line.startswith("step ")]
    _expect(len(marks) == 1, f"more or less than one life: {sorted(marks)}")
    _expect(steps == [f"step {n}/8" for n in range(1, 9)], f"steps were lost or doubled: {steps}")
    _expect(ended.attempt == 1, f"it needed {ended.attempt} attempts")
    _expect(demo.stack.children[ZURICH].starts == 2, "the daemon was not killed")
    return f"one life from its first line to its last ({marks.pop()}), attempt 1, adopted by the next daemon"


async def summarise(demo: Demo) -> str:
    """Let a small language model read a text, without any network."""
    agent = await _spawn(demo, SpawnRequest(type="summarise", input=_TEXT, spoke=ZURICH))
    seen = await _follow(demo, agent, "summarise")
    await until(demo.client, agent, State.SUCCEEDED)
    said = next((line for line in seen if line.startswith("summary: ")), "")
    _expect(len(said) > len("summary: ") + 20, "it said nothing")
    return said


# --- what the steps share --------------------------------------------------------------------------------


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnexpectedError(otherwise)


async def _spawn(demo: Demo, request: SpawnRequest) -> str:
    agent = (await demo.client.spawn(request)).id
    demo.show.say(f"spawned {request.type} at {request.spoke}: {agent}")
    return agent


async def _work_through(demo: Demo, kind: str, spoke: str) -> list[str]:
    agent = await _spawn(demo, SpawnRequest(type=kind, spoke=spoke))
    seen = await _follow(demo, agent, f"{kind}@{spoke}")
    ended = await until(demo.client, agent, State.SUCCEEDED)
    _expect(ended.spoke == spoke, f"{kind} ran at {ended.spoke}")
    return seen


async def _follow(demo: Demo, agent: str, who: str) -> list[str]:
    seen: list[str] = []
    async for line in lines(demo.client, agent):
        demo.show.line(who, line)
        seen.append(line)
    return seen


async def _until_line(demo: Demo, agent: str, start: str) -> None:
    async for line in lines(demo.client, agent):
        if line.startswith(start):
            return
    raise UnexpectedError(f"it ended without a line `{start}…`")


async def _counted(demo: Demo, before: SpokeView) -> dict[str, int]:
    """Return what the spoke counted since, once all of it has arrived with a heartbeat."""
    wanted = {"unknown_key": 1, "bad_signature": 2, "replayed": 1}
    while True:
        now = (await demo.client.spoke(ZURICH)).refusals
        counted = {name: n - before.refusals.get(name, 0) for name, n in now.items()}
        counted = {name: n for name, n in counted.items() if n > 0}
        if all(counted.get(name, 0) >= n for name, n in wanted.items()):
            return counted
        await asyncio.sleep(0.1)


async def _check_no_effect(demo: Demo, agent: str) -> None:
    seen = await demo.client.agent(agent)
    begun = sum(line.startswith("begin ") for line in await output(demo.client, agent))
    _expect(
        seen.attempt == 1 and begun == 1,
        f"the replay ran again: attempt {seen.attempt}, {begun} starts",
    )
    _expect(not forged_runs(), "a forged agent runs")
    spoke = await demo.client.spoke(ZURICH)
    _expect(
        spoke.running + spoke.queued == 0,
        f"{ZURICH} has {spoke.running + spoke.queued} agents of nobody",
    )


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
