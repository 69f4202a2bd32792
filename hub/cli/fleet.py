"""`felloe spokes`, `types`, `queue`, `dead-letters`, `events`: what is not one agent."""

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from hub.cli.session import asking, full_id, show, show_json
from shared.errors import BadInputError

if TYPE_CHECKING:
    from hub.client import Client
    from hub.schemas import AgentType


@click.command("spokes")
@asking
async def spokes(hub: "Client", *, as_json: bool) -> None:
    """List the spokes: how full they are, what they offer, what their hosts lack."""
    from hub.cli import tables  # noqa: PLC0415

    show((await hub.spokes()).spokes, as_json, tables.spokes)


@click.group("types", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def types(context: click.Context, as_json: bool) -> None:
    """Agent types: what to start, within which limits, with which defaults; alone it lists them."""
    if context.invoked_subcommand is None:
        context.invoke(list_types, as_json=as_json)


@types.command("list")
@asking
async def list_types(hub: "Client", *, as_json: bool) -> None:
    """List the agent types."""
    from hub.cli import tables  # noqa: PLC0415

    show((await hub.agent_types()).types, as_json, tables.types)


@types.command("show")
@click.argument("name")
@asking
async def show_type(hub: "Client", *, name: str, as_json: bool) -> None:
    """Show one agent type."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.agent_type(name), as_json, lambda kind: tables.types([kind]))


@types.command("put")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@asking
async def put_type(hub: "Client", *, file: Path, as_json: bool) -> None:
    """Add or replace the types in FILE: TOML with [types.NAME] tables, or JSON with one type or a list of them."""
    for kind in read_types_file(file):
        done = await hub.put_type(kind)
        if as_json:
            show_json(done)
        else:
            click.echo(done.name)


@types.command("delete")
@click.argument("name")
@asking
async def delete_type(hub: "Client", *, name: str, as_json: bool) -> None:
    """Delete an agent type; its agents go on."""
    await hub.delete_type(name)
    if as_json:
        show_json({"deleted": name})


@click.group("queue", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.pass_context
def queue(context: click.Context, as_json: bool) -> None:
    """The counts per spoke; `pause` and `resume`."""
    if context.invoked_subcommand is None:
        context.invoke(count, as_json=as_json)


@queue.command("counts")
@asking
async def count(hub: "Client", *, as_json: bool) -> None:
    """Count the agents: pending, active, delayed, completed, failed."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.queues(), as_json, tables.queues)


@queue.command("pause")
@click.argument("spoke", required=False)
@asking
async def pause(hub: "Client", *, spoke: str | None, as_json: bool) -> None:
    """Have nothing more start, at SPOKE or everywhere; what runs goes on."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.pause(spoke), as_json, tables.queues)


@queue.command("resume")
@click.argument("spoke", required=False)
@asking
async def resume(hub: "Client", *, spoke: str | None, as_json: bool) -> None:
    """End a pause, at SPOKE or everywhere."""
    from hub.cli import tables  # noqa: PLC0415

    show(await hub.resume(spoke), as_json, tables.queues)


@click.group("dead-letters", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def dead_letters(context: click.Context, as_json: bool) -> None:
    """Agents whose attempts are used up: look, send back, let go; alone it lists them."""
    if context.invoked_subcommand is None:
        context.invoke(list_dead_letters, as_json=as_json)


@dead_letters.command("list")
@click.option("--spoke", help="Only those of this spoke.")
@click.option("--limit", "-n", type=click.IntRange(1, 500), default=50, show_default=True)
@asking
async def list_dead_letters(
    hub: "Client", *, spoke: str | None, limit: int, as_json: bool
) -> None:
    """List the dead letters, newest first."""
    from hub.cli import tables  # noqa: PLC0415

    show((await hub.dead_letters(spoke=spoke, limit=limit)).agents, as_json, tables.agents)


@dead_letters.command("requeue")
@click.argument("agents", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them, 1,000 in one call.")
@click.option("--reason", default="", help="Kept with the agent's events.")
@asking
async def requeue(
    hub: "Client", *, agents: Sequence[str], all_: bool, reason: str, as_json: bool
) -> None:
    """Send dead letters back: each is placed anew."""
    from hub.cli import tables  # noqa: PLC0415

    show(
        await hub.requeue(await _named(hub, agents, all_), reason=reason),
        as_json,
        tables.dead_letter_results,
    )


@dead_letters.command("discard")
@click.argument("agents", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them, 1,000 in one call.")
@click.option("--reason", default="", help="Kept with the agent's events.")
@asking
async def discard(
    hub: "Client", *, agents: Sequence[str], all_: bool, reason: str, as_json: bool
) -> None:
    """Take dead letters off the list; the agents stay failed."""
    from hub.cli import tables  # noqa: PLC0415

    show(
        await hub.discard(await _named(hub, agents, all_), reason=reason),
        as_json,
        tables.dead_letter_results,
    )


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on, until Ctrl-C.")
@click.option("--agent", "-a", help="Only of this agent.")
@click.option("--after", type=click.IntRange(min=0), help="Only those after this event's number.")
@click.option("--limit", "-n", type=click.IntRange(1, 1_000), default=100, show_default=True)
@asking
async def events(
    hub: "Client", *, follow: bool, agent: str | None, after: int | None, limit: int, as_json: bool
) -> None:
    """Print what happened to agents: the oldest first, or with --follow what comes."""
    from hub.cli import tables  # noqa: PLC0415

    agent_id = None if agent is None else await full_id(hub, agent)
    if not follow:
        for event in (await hub.event_page(agent=agent_id, after=after or 0, limit=limit)).events:
            show_json(event) if as_json else click.echo(tables.event(event))
        return
    async with aclosing(hub.events(agent=agent_id, after=after)) as stream:
        async for event in stream:
            show_json(event) if as_json else click.echo(tables.event(event))


def read_types_file(file: Path) -> "list[AgentType]":
    """Return the types in a file; raises BadInputError or ConfigError that names the entry."""
    import msgspec  # noqa: PLC0415

    from hub.control.catalogue import read_types  # noqa: PLC0415
    from hub.schemas import AgentType  # noqa: PLC0415

    if file.suffix != ".json":
        return read_types(file)
    try:
        data = file.read_bytes()
        if data.lstrip().startswith(b"["):
            return msgspec.json.decode(data, type=list[AgentType])
        return [msgspec.json.decode(data, type=AgentType)]
    except (OSError, msgspec.MsgspecError) as error:
        raise BadInputError(f"{file}: {error}") from None


async def _named(hub: "Client", agents: Sequence[str], all_: bool) -> list[str]:
    if all_ == bool(agents):
        raise BadInputError("name dead letters, or say --all; not both")
    return [await full_id(hub, agent) for agent in agents]
