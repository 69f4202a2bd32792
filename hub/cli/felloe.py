"""`felloe`: spawn, watch and certainly stop agents at many sites."""

import sys
from pathlib import Path

import rich_click as click

from hub.cli import agents, fleet
from hub.cli.session import show_line
from hub.cli.spawn import spawn
from shared.errors import FelloeError

_COMPLETION = """\
bash:  echo 'eval "$(_FELLOE_COMPLETE=bash_source felloe)"' >> ~/.bashrc
zsh:   echo 'eval "$(_FELLOE_COMPLETE=zsh_source felloe)"' >> ~/.zshrc
fish:  _FELLOE_COMPLETE=fish_source felloe > ~/.config/fish/completions/felloe.fish"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--hub", metavar="URL", help="The hub's address; else FELLOE_URL, else what `felloe up` wrote."
)
def felloe(hub: str | None) -> None:
    """Spawn, watch and certainly stop AI agents at many sites.

    The token comes from FELLOE_TOKEN_FILE or FELLOE_TOKEN. Ids may be abbreviated by how they begin or end. With
    --follow or --wait a command ends as its agent did: 128 + n for a signal, 123 lost, 124 timed out or expired; 125
    is Felloe itself, 126 a refusal.
    """
    del hub  # the commands read it from the context


@felloe.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
@click.option("--llm", is_flag=True, help="Also run a small language model in a sandbox.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON at the end.")
def demo(keep: bool, llm: bool, as_json: bool) -> None:
    """Run the main job on an embedded stack and show it as it happens."""
    from hub.dev import demo as embedded  # noqa: PLC0415 - starts a world of its own

    sys.exit(embedded.main(keep=keep, llm=llm, as_json=as_json))


@felloe.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it keeps itself (.felloe).",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print where it is as JSON, once it is ready."
)
def up(folder: Path | None, as_json: bool) -> None:
    """Keep an embedded stack up, until Ctrl-C: a hub and two spokes on this machine."""
    from hub.dev import up as embedded  # noqa: PLC0415

    sys.exit(embedded.main(folder, as_json=as_json))


@felloe.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the version."""
    from shared.version import VERSION  # noqa: PLC0415

    show_line(VERSION, {"version": VERSION}, as_json=as_json)


@felloe.command()
def completion() -> None:
    """Say how to have the shell complete commands and options."""
    click.echo(_COMPLETION)


for command in (
    spawn,
    agents.ps,
    agents.show_agent,
    agents.status,
    agents.logs,
    agents.kill,
    agents.release,
    agents.remove,
    fleet.spokes,
    fleet.types,
    fleet.queue,
    fleet.dead_letters,
    fleet.events,
):
    felloe.add_command(command)


def main() -> None:
    """Entry point: what Felloe raises on purpose is one sentence, and exit status 125 or 126."""
    try:
        felloe()
    except FelloeError as error:
        from hub.cli.exits import status_of_error  # noqa: PLC0415

        click.echo(f"felloe: {error}", err=True)
        sys.exit(status_of_error(error))


if __name__ == "__main__":
    main()
