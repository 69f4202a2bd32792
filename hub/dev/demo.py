"""`./dev demo`: the main job on this machine, shown as it happens, each step with a real check.

    1  real agents at two sites, their output as it comes     4  commands that nobody ordered: forged, altered, replayed
    2  the live status of one                                 5  kill -9 of a spoke daemon: its agent goes on
    3  a kill that is confirmed                               6  with --llm: a language model in a sandbox

A step returns what was seen, or raises: then it failed, the others still run, and the demo ends non-zero with the
reason. Everything is stopped at the end, whichever way it ends; `--keep` waits for Ctrl-C before.
"""

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from hub.dev.attack import Attacker, altered, forged, forged_runs
from hub.dev.desk import Desk, UnexpectedError
from hub.dev.foreground import in_foreground
from hub.dev.plan import Options
from hub.dev.show import Outcome, Show
from hub.dev.stack import Stack
from hub.schemas import SpokeView
from shared.errors import FelloeError
from shared.lifecycle import State

ZURICH: Final = "zurich"
GENEVA: Final = "geneva"
# Heartbeats every second instead of ten, so that counters show while one looks.
OPTIONS: Final = Options(tap=True, heartbeat_s=1.0)
_STEP_S: Final = 60.0
_MARK: Final = re.compile(r"mark=\w+ pid=\d+")
_TEXT: Final = (
    "The harbour of Marseille was closed for three days after a storm broke the crane on the east pier. About forty"
    " ships had to wait at sea. The port authority says that repairs will cost two million euros and that a second"
    " crane, planned since 2019, will now be bought at once. Fishermen were paid for the days that they lost."
)


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps stand on."""

    stack: Stack
    desk: Desk
    show: Show


Step = Callable[[Demo], Awaitable[str]]


def main(*, keep: bool = False, llm: bool = False) -> int:
    """Run the demo in the foreground: what `./dev demo` and `felloe demo` call."""
    return in_foreground(run(keep=keep, llm=llm))


async def run(*, keep: bool, llm: bool) -> int:
    """Run the demo, and return the exit status: 0 only if every step did what it must."""
    show = Show()
    show.heading(0, "One hub, two sites, all on this machine")
    show.say(
        "starting nats-server, a valkey-server for each site, the hub, and the spokes zurich and geneva …"
    )
    async with Stack(None, OPTIONS, show.say) as stack, stack.client() as client:
        show.say(f"ready: the hub at {stack.plan.url} hears {' and '.join(stack.spokes)}")
        if stack.why_not_isolated:
            show.say(
                f"NO ISOLATION: agents run as plain processes here, since {stack.why_not_isolated}"
            )
        demo = Demo(stack=stack, desk=Desk(client), show=show)
        outcomes = [
            await _take(demo, n, title, step) for n, (title, step) in enumerate(_steps(llm=llm), 1)
        ]
        show.summary(outcomes, (await demo.desk.spoke(ZURICH)).lacks)
        if keep:
            await _keep(stack, show)
    return _verdict(outcomes, show)


def _steps(*, llm: bool) -> Sequence[tuple[str, Step]]:
    steps: list[tuple[str, Step]] = [
        ("Real agents at two sites", work),
        ("Live status", status),
        ("A kill that is certain", kill),
        ("Commands that nobody ordered", attack),
        ("kill -9 of a spoke daemon", survive),
    ]
    return [*steps, ("A language model in a sandbox", summarise)] if llm else steps


async def _take(demo: Demo, n: int, title: str, step: Step) -> Outcome:
    demo.show.heading(n, title)
    loop = asyncio.get_running_loop()
    began, ok = loop.time(), False
    try:
        async with asyncio.timeout(_STEP_S):
            detail = await step(demo)
        ok = True
    except FelloeError as error:
        detail = str(error)
    except ExceptionGroup as group:
        if group.split(FelloeError)[1] is not None:
            raise
        detail = "; ".join(str(error) for error in group.exceptions)
    except TimeoutError:
        detail = f"not done after {_STEP_S:.0f} s"
    outcome = Outcome(title=title, ok=ok, detail=detail, seconds=loop.time() - began)
    demo.show.verdict(outcome)
    return outcome


async def _keep(stack: Stack, show: Show) -> None:
    show.say("")
    show.say(
        f"It stays up until Ctrl-C. The hub: {stack.plan.url}   its token: {stack.plan.token_file}"
    )
    show.say("Three commands to try, in another terminal:")
    environment = f"FELLOE_URL={stack.plan.url} FELLOE_TOKEN_FILE={stack.plan.token_file}"
    show.say(f"   export {environment}")
    for command in ("spawn lint --follow", "ps", "spokes"):
        show.say(f"   .venv/bin/felloe {command}")
    await asyncio.Event().wait()


def _verdict(outcomes: Sequence[Outcome], show: Show) -> int:
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        show.say(f"FAILED: {outcome.title}: {outcome.detail}")
    if not failed:
        show.say("every step did what it must; everything is stopped")
    return 1 if failed else 0


# --- the steps -------------------------------------------------------------------------------------------


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
    agent = await demo.desk.spawn({"type": "steps", "args": ["100"], "spoke": GENEVA})
    await demo.desk.until(agent, State.RUNNING)
    seen = await demo.desk.status(agent)
    await demo.desk.kill(agent)
    _expect(seen.live, f"{GENEVA} did not answer: {seen.reason}")
    _expect(seen.state == State.RUNNING, f"{GENEVA} says {seen.state}")
    _expect(seen.processes >= 1, "a running agent without a process")
    text = f"{GENEVA} says itself, signed: {seen.state}, attempt {seen.attempt}, {seen.processes} processes"
    demo.show.say(text)
    await demo.desk.until(agent, State.KILLED)
    return text


async def kill(demo: Demo) -> str:
    """Kill an agent that ignores SIGTERM and has a child; wait for the signed word that both are gone."""
    agent = await _spawn(demo, {"type": "stubborn", "spoke": GENEVA})
    await _until_line(demo, agent, "begin")
    demo.show.say("kill: SIGTERM first, SIGKILL for the whole sandbox after a grace of 1 s")
    await demo.desk.kill(agent)
    ended = await demo.desk.until(agent, State.KILLED)
    for line in (await demo.desk.output(agent)).splitlines():
        demo.show.line("stubborn", line)
    times = ended.kill
    _expect(times is not None and times.confirmed_at is not None, "the kill was not confirmed")
    left = await demo.desk.status(agent)
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
        agent = await _spawn(demo, {"type": "steps", "args": ["1", "0.1"], "spoke": ZURICH})
        captured = await attacker.captured(agent)
        await demo.desk.until(agent, State.SUCCEEDED)
        before = await demo.desk.spoke(ZURICH)
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
    agent = await _spawn(demo, {"type": "steps", "args": ["8", "0.4"], "spoke": ZURICH})
    lines: list[str] = []
    async for line in demo.desk.follow(agent):
        demo.show.line("steps", line)
        lines.append(line)
        if line.startswith("step 2/"):
            pid = demo.stack.children[ZURICH].kill(signal.SIGKILL)
            demo.show.say(f"kill -9 {pid}: the daemon of {ZURICH} is gone, its sandbox is not")
    ended = await demo.desk.until(agent, State.SUCCEEDED)
    marks = set(_MARK.findall("\n".join(lines)))
    steps = [line for line in lines if line.startswith("step ")]
    _expect(len(marks) == 1, f"more or less than one life: {sorted(marks)}")
    _expect(steps == [f"step {n}/8" for n in range(1, 9)], f"steps were lost or doubled: {steps}")
    _expect(ended.attempt == 1, f"it needed {ended.attempt} attempts")
    _expect(demo.stack.children[ZURICH].starts == 2, "the daemon was not killed")
    return f"one life from its first line to its last ({marks.pop()}), attempt 1, adopted by the next daemon"


async def summarise(demo: Demo) -> str:
    """Let a small language model read a text, without any network."""
    agent = await _spawn(demo, {"type": "summarise", "input": _TEXT, "spoke": ZURICH})
    lines = await _follow(demo, agent, "summarise")
    await demo.desk.until(agent, State.SUCCEEDED)
    said = next((line for line in lines if line.startswith("summary: ")), "")
    _expect(len(said) > len("summary: ") + 20, "it said nothing")
    return said


# --- what the steps share --------------------------------------------------------------------------------


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnexpectedError(otherwise)


async def _spawn(demo: Demo, request: dict[str, object]) -> str:
    agent = await demo.desk.spawn(request)
    demo.show.say(f"spawned {request['type']} at {request['spoke']}: {agent}")
    return agent


async def _work_through(demo: Demo, kind: str, spoke: str) -> list[str]:
    agent = await _spawn(demo, {"type": kind, "spoke": spoke})
    lines = await _follow(demo, agent, f"{kind}@{spoke}")
    ended = await demo.desk.until(agent, State.SUCCEEDED)
    _expect(ended.spoke == spoke, f"{kind} ran at {ended.spoke}")
    return lines


async def _follow(demo: Demo, agent: str, who: str) -> list[str]:
    lines: list[str] = []
    async for line in demo.desk.follow(agent):
        demo.show.line(who, line)
        lines.append(line)
    return lines


async def _until_line(demo: Demo, agent: str, start: str) -> None:
    async for line in demo.desk.follow(agent):
        if line.startswith(start):
            return
    raise UnexpectedError(f"it ended without a line `{start}…`")


async def _counted(demo: Demo, before: SpokeView) -> dict[str, int]:
    """Return what the spoke counted since, once all of it has arrived with a heartbeat."""
    wanted = {"unknown_key": 1, "bad_signature": 2, "replayed": 1}
    while True:
        now = (await demo.desk.spoke(ZURICH)).refusals
        counted = {name: n - before.refusals.get(name, 0) for name, n in now.items()}
        counted = {name: n for name, n in counted.items() if n}
        if counted == wanted:
            return counted
        await asyncio.sleep(0.1)


async def _check_no_effect(demo: Demo, agent: str) -> None:
    seen = await demo.desk.agent(agent)
    begun = (await demo.desk.output(agent)).count("begin ")
    _expect(
        seen.attempt == 1 and begun == 1,
        f"the replay ran again: attempt {seen.attempt}, {begun} starts",
    )
    _expect(not forged_runs(), "a forged agent runs")
    spoke = await demo.desk.spoke(ZURICH)
    _expect(
        spoke.running + spoke.queued == 0,
        f"{ZURICH} has {spoke.running + spoke.queued} agents of nobody",
    )


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
