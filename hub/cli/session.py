"""What every command of `felloe` shares: find the hub, run the coroutine, print for people or as JSON, exit.

A command is an async function `(hub, …) → exit status or None`, made into a click command by `asking`. Results go to
stdout, everything else to stderr, so that output can be piped.
"""

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from shared.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hub.client import Client

# Ids may be abbreviated over as many agents as one page holds.
NEWEST: Final = 500
_FULL: Final = 36
_WIDE: Final = 240
_INTERRUPTED: Final = 130

Command = Callable[..., Awaitable[int | None]]


def asking(command: Command) -> Callable[..., None]:
    """Make a click callback of a coroutine that talks to the hub; adds `--json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.pass_context
    @functools.wraps(command)
    def callback(context: click.Context, /, **given: Any) -> None:
        from hub.cli.where import find_hub  # noqa: PLC0415 - `--help` needs none of it

        where = find_hub(
            context.find_root().params.get("hub"), os.environ, Path.cwd(), Path.home()
        )

        async def run() -> int | None:
            from hub.client import Client  # noqa: PLC0415

            async with Client(where.url, where.token) as hub:
                return await command(hub, **given)

        try:
            sys.exit(asyncio.run(run()) or 0)
        except KeyboardInterrupt:
            # Caught before click, which would say "Aborted!" and end with 1.
            sys.exit(_INTERRUPTED)

    return callback


def show(view: Any, as_json: bool, render: "Callable[[Any], RenderableType]") -> None:
    """Print a result: as one line of JSON, or as what `render` makes of it."""
    if as_json:
        show_json(view)
        return
    from rich.console import Console  # noqa: PLC0415

    # Into a pipe there is no width to fit.
    Console(width=None if sys.stdout.isatty() else _WIDE).print(render(view))


def show_line(line: str, view: Any, *, as_json: bool) -> None:
    """Print a result that is one line for people."""
    if as_json:
        show_json(view)
    else:
        click.echo(line)


def show_json(view: Any) -> None:
    """Print one line of JSON."""
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.encode(view).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Tell the person at the terminal, beside the result."""
    click.echo(text, err=True)


async def full_id(hub: "Client", text: str) -> str:
    """Return the id that begins or ends with `text`, among the newest agents; raises BadInputError."""
    if len(text) == _FULL:
        return text
    if not text or not set(text) <= set("0123456789abcdef-"):
        raise BadInputError(
            f"`{text}` is no agent's id nor part of one; `felloe ps --all` shows them"
        )
    ids = [agent.id for agent in (await hub.agents(limit=NEWEST)).agents]
    found = [each for each in ids if each.startswith(text) or each.endswith(text)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInputError(
            f"none of the newest {NEWEST} agents has an id like `{text}`; give it in full"
        )
    raise BadInputError(
        f"`{text}` could be {', '.join(found[:5])}{' …' if len(found) > 5 else ''}"
    )
