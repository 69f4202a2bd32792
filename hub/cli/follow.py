"""Waiting at the terminal: for an agent's output, for its end, for the confirmation of a kill.

While an agent waits, a person sees where and why on stderr; stdout has the agent's own output and nothing else.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

from hub.cli.session import say, show_json
from hub.client import Client, LogEvent
from hub.schemas import AgentView
from shared.lifecycle import ENDED, State
from shared.messages import LogStream

_LOOK_S = 1.0


async def follow_logs(
    hub: Client, agent: str, *, as_json: bool, follow: bool = True, start: str = "1.1.0"
) -> bool:
    """Print an agent's output up to its end, or all there is so far; False if its site was away."""
    events = hub.logs(agent, start=start, follow=follow)
    shown = _waiting_shown(hub, agent, wanted=follow and not as_json)
    is_whole = True
    async with shown as waiting, aclosing(events):
        async for event in events:
            if not waiting.done():
                waiting.cancel()
                await asyncio.sleep(0)  # lets it wipe its line before ours is written
            _print(event, as_json=as_json)
            is_whole = event.kind != "absent"
    return is_whole


async def until_ended(hub: Client, agent: str, *, tell: bool = False) -> AgentView:
    """Return the agent once it has ended; `tell` shows at a terminal why it has not started."""
    shown = _waiting_shown(hub, agent, wanted=tell)
    async with shown, aclosing(hub.events(agent=agent)) as events:
        async for event in events:
            if event.state in ENDED:
                view = await hub.agent(agent)
                if view.state in ENDED:
                    return view
    raise AssertionError("a stream of events has no end")


async def until_killed(hub: Client, agent: str, *, tell: bool) -> AgentView:
    """Return the agent once its kill is confirmed, or it had ended without one; tells each step."""
    told = ""
    async with aclosing(hub.events(agent=agent)) as events:
        async for _ in events:
            view = await hub.agent(agent)
            step = _kill_step(view)
            if tell and step != told:
                say(f"{agent}: {step}")
                told = step
            if view.state in ENDED and (view.kill is None or view.kill.confirmed_at is not None):
                return view
    raise AssertionError("a stream of events has no end")


def _kill_step(view: AgentView) -> str:
    if view.kill is None:
        return f"had ended before: {view.state}"
    if view.kill.confirmed_at is not None:
        return f"confirmed {view.kill.confirmed_at}: nothing of it is left"
    if view.kill.accepted_at is not None:
        return f"accepted {view.kill.accepted_at}, its sandbox is being ended"
    return f"requested {view.kill.requested_at}, waits for {view.spoke or 'its spoke'}"


def _print(event: LogEvent, *, as_json: bool) -> None:
    if as_json:
        show_json(event)
        return
    match event.kind:
        case "log":
            out = sys.stdout if event.log.stream is LogStream.OUT else sys.stderr
            out.write(event.log.text)
            out.flush()
        case "gap" | "absent":
            say(f"[felloe: {event.kind}: {event.log.reason}]")
        case _:
            return


@asynccontextmanager
async def _waiting_shown(
    hub: Client, agent: str, *, wanted: bool
) -> AsyncGenerator["asyncio.Task[None]", None]:
    """Show why an agent has not started, at a terminal, until the task that is lent is cancelled."""
    shown = _show_waiting(hub, agent) if wanted and sys.stderr.isatty() else _nothing()
    task = asyncio.create_task(shown)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _show_waiting(hub: Client, agent: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - only at a terminal

    with Console(stderr=True).status("") as status:
        while (
            view := await hub.agent(agent)
        ).state is not State.RUNNING and view.state not in ENDED:
            place = "" if view.position is None else f", position {view.position}"
            status.update(f"{view.state}{place}: {view.reason}")
            await asyncio.sleep(_LOOK_S)


async def _nothing() -> None:
    return
