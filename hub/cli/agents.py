"""`felloe ps`, `show`, `status`, `logs`, `kill`, `release`, `remove`: agents that exist."""

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import rich_click as click

from hub.cli.session import asking, full_id, show, show_json
from hub.cli.spawn import Duration, Pair

if TYPE_CHECKING:
    from hub.client import Client
    from hub.schemas import AgentView

_UNFINISHED = ("held", "waiting", "pending", "placed", "queued", "running", "retrying")
_PAGE = 500


@click.command("ps")
@click.option("--all", "-a", "all_", is_flag=True, help="Those that ended, too.")
@click.option("--state", "-s", multiple=True, help="Only these states.")
@click.option("--spoke", help="Only at this spoke.")
@click.option("--type", "-t", "type_", metavar="TYPE", help="Only of this type.")
@click.option("--label", "-l", type=Pair(), multiple=True, help="Only with this label.")
@click.option("--limit", "-n", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="Only the ids, in full.")
@click.option("--watch", is_flag=True, help="Go on showing, until Ctrl-C.")
@asking
async def ps(hub: "Client", *, watch: bool, quiet: bool, as_json: bool, **given: Any) -> None:
    """List agents, newest first; unfinished ones unless asked otherwise. Ids are shown by their last 8 digits."""
    from hub.cli import tables  # noqa: PLC0415 - rich is not needed for --json

    if watch and not as_json:
        await _watch(hub, given)
        return
    views = await _list(hub, given)
    if quiet and not as_json:
        click.echo("".join(f"{view.id}\n" for view in views), nl=False)
        return
    show(views, as_json, tables.agents)


@click.command("show")
@click.argument("agent")
@asking
async def show_agent(hub: "Client", *, agent: str, as_json: bool) -> None:
    """Show all that the hub knows of an agent."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.agent(await full_id(hub, agent)), as_json, tables.agent)


@click.command("status")
@click.argument("agent")
@asking
async def status(hub: "Client", *, agent: str, as_json: bool) -> None:
    """Ask an agent's spoke itself how it is: a signed question, a signed answer."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.status(await full_id(hub, agent)), as_json, tables.status)


@click.command("logs")
@click.argument("agent")
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
@click.option(
    "--from",
    "start",
    metavar="GEN.ATTEMPT.OFFSET",
    default="1.1.0",
    show_default=True,
    help="Where to begin.",
)
@asking
async def logs(
    hub: "Client", *, agent: str, follow: bool, start: str, as_json: bool
) -> int | None:
    """Print an agent's output: all of it so far, from all attempts. Ends with 125 if its site is away."""
    from hub.cli.exits import FELLOE  # noqa: PLC0415
    from hub.cli.follow import follow_logs  # noqa: PLC0415

    agent_id = await full_id(hub, agent)
    is_whole = await follow_logs(hub, agent_id, as_json=as_json, follow=follow, start=start)
    return None if is_whole else FELLOE


@click.command("kill")
@click.argument("agents", nargs=-1, required=True)
@click.option(
    "--grace", type=Duration(), help="Between SIGTERM and SIGKILL; else the agent's own."
)
@click.option("--reason", default="", help="Kept in the audit.")
@click.option(
    "--wait/--no-wait",
    default=None,
    help="Wait until nothing of it is left; the default at a terminal.",
)
@asking
async def kill(
    hub: "Client",
    *,
    agents: Sequence[str],
    grace: float | None,
    reason: str,
    wait: bool | None,
    as_json: bool,
) -> None:
    """Kill agents, certainly: the order is repeated until each sandbox was seen gone."""
    from hub.cli.follow import until_killed  # noqa: PLC0415

    waits = sys.stdout.isatty() if wait is None else wait

    async def one(agent_id: str) -> "AgentView":
        ordered = await hub.kill(agent_id, grace_s=grace, reason=reason)
        return await until_killed(hub, agent_id, tell=not as_json) if waits else ordered

    ids = [await full_id(hub, agent) for agent in agents]
    views = await asyncio.gather(*(one(agent_id) for agent_id in dict.fromkeys(ids)))
    for view in views:
        if as_json:
            show_json(view)
        elif not waits:
            click.echo(
                f"{view.id} {view.state}: kill {'confirmed' if _is_confirmed(view) else 'requested'}"
            )


@click.command("release")
@click.argument("agents", nargs=-1, required=True)
@asking
async def release(hub: "Client", *, agents: Sequence[str], as_json: bool) -> None:
    """Let agents go on that were spawned with --hold."""
    for agent in agents:
        _tell(await hub.release(await full_id(hub, agent)), as_json)


@click.command("remove")
@click.argument("agents", nargs=-1, required=True)
@asking
async def remove(hub: "Client", *, agents: Sequence[str], as_json: bool) -> None:
    """Remove agents that have not started."""
    for agent in agents:
        _tell(await hub.remove(await full_id(hub, agent)), as_json)


async def _list(hub: "Client", given: dict[str, Any]) -> "list[AgentView]":
    states = given["state"] or (() if given["all_"] else _UNFINISHED)
    found: list[AgentView] = []
    cursor: str | None = None
    while len(found) < given["limit"]:
        page = await hub.agents(
            states=states,
            spoke=given["spoke"],
            type=given["type_"],
            labels=dict(given["label"]),
            cursor=cursor,
            limit=min(_PAGE, given["limit"] - len(found)),
        )
        found += page.agents
        cursor = page.next
        if cursor is None:
            break
    return found


async def _watch(hub: "Client", given: dict[str, Any]) -> None:
    from rich.live import Live  # noqa: PLC0415

    from hub.cli import tables  # noqa: PLC0415

    with Live(tables.agents(await _list(hub, given)), refresh_per_second=4) as live:
        while True:
            await asyncio.sleep(1)
            live.update(tables.agents(await _list(hub, given)))


def _is_confirmed(view: "AgentView") -> bool:
    return view.kill is not None and view.kill.confirmed_at is not None


def _tell(view: "AgentView", as_json: bool) -> None:
    if as_json:
        show_json(view)
    else:
        click.echo(f"{view.id} {view.state}: {view.reason}")
