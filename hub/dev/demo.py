"""`./dev demo`: the main job on this machine, shown as it happens, each step with a real check.

    1  real agents at two sites, their output as it comes     4  commands that nobody ordered: forged, altered, replayed
    2  the live status of one                                 5  kill -9 of a spoke daemon: its agent goes on
    3  a kill that is confirmed                               6  with --llm: a language model in a sandbox

A step returns what was seen, or raises: then it failed, the others still run, and the demo ends non-zero with the
reason. Everything is stopped at the end, whichever way it ends; `--keep` waits for Ctrl-C before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from hub.dev.foreground import in_foreground
from hub.dev.plan import Options
from hub.dev.show import Outcome, Show
from hub.dev.stack import Stack
from hub.dev.steps import ZURICH, Demo, attack, kill, status, summarise, survive, work
from shared.errors import FelloeError

# Heartbeats every second instead of ten, so that counters show while one looks.
OPTIONS: Final = Options(tap=True, heartbeat_s=1.0)
_STEP_S: Final = 60.0

Step = Callable[[Demo], Awaitable[str]]


def main(*, keep: bool = False, llm: bool = False, as_json: bool = False) -> int:
    """Run the demo in the foreground: what `./dev demo` and `felloe demo` call."""
    return in_foreground(run(keep=keep, llm=llm, as_json=as_json))


async def run(*, keep: bool, llm: bool, as_json: bool) -> int:
    """Run the demo, and return the exit status: 0 only if every step did what it must."""
    show = Show(as_json=as_json)
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
        demo = Demo(stack=stack, client=client, show=show)
        outcomes = [
            await _take(demo, n, title, step) for n, (title, step) in enumerate(_steps(llm=llm), 1)
        ]
        show.summary(outcomes, (await demo.client.spoke(ZURICH)).lacks)
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
    if not ok:
        _show_logs(demo)
    return outcome


def _show_logs(demo: Demo) -> None:
    for name in ("hub", *demo.stack.spokes):
        demo.show.say(f"the end of the log of {name}:")
        for line in demo.stack.children[name].last_lines().splitlines():
            demo.show.line(name, line)


async def _keep(stack: Stack, show: Show) -> None:
    show.say("")
    show.say(
        f"It stays up until Ctrl-C. The hub: {stack.plan.url}   its token: {stack.plan.token_file}"
    )
    show.say("Three commands to try, in another terminal:")
    environment = f"FELLOE_URL={stack.plan.url} FELLOE_TOKEN_FILE={stack.plan.token_file}"
    show.say(f"   export {environment}")
    for command in ("spawn --type lint --follow", "ps", "spokes"):
        show.say(f"   .venv/bin/felloe {command}")
    await asyncio.Event().wait()


def _verdict(outcomes: Sequence[Outcome], show: Show) -> int:
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        show.say(f"FAILED: {outcome.title}: {outcome.detail}")
    if not failed:
        show.say("every step did what it must; everything is stopped")
    return 1 if failed else 0
