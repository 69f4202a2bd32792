"""`felloe-hub`: run a hub, bring its database up to date, make keys."""

import os
import sys
from pathlib import Path

import rich_click as click

from hub.cli.session import show_line
from shared.errors import FelloeError

_FAILED = 125

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def hub() -> None:
    """The hub: REST in front, the truth in SQL, signed commands out, signed facts in.

    Settings come from a TOML file and from the environment: `[http] port` is FELLOE_HUB_HTTP_PORT, and
    FELLOE_HUB_HTTP_TOKEN_FILE names a file that holds `[http] token`.
    """


@hub.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FELLOE_HUB_CONFIG",
    help="TOML file with the settings.",
)
def serve(config: Path | None) -> None:
    """Run the hub until SIGTERM or SIGINT; a second one ends it at once."""
    from hub.app import serve as serve_hub  # noqa: PLC0415 - `--help` needs none of it
    from hub.config import HubSettings  # noqa: PLC0415
    from shared import service, telemetry  # noqa: PLC0415
    from shared.config import load  # noqa: PLC0415

    settings = load(HubSettings, "FELLOE_HUB", config, os.environ)
    telemetry.set_up_logs(as_json=settings.logs.format == "json", level=settings.logs.level)
    sys.exit(service.run(lambda stop: serve_hub(settings, stop)))


@hub.group()
def db() -> None:
    """The hub's database."""


@db.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@_json
def upgrade(path: Path, as_json: bool) -> None:
    """Bring the database at PATH up to this version; `serve` does it by itself."""
    from hub.store import migrate  # noqa: PLC0415
    from shared.telemetry import set_up_logs  # noqa: PLC0415

    set_up_logs(as_json=False)
    version = migrate.upgrade(path)
    show_line(f"{path} is at {version}", {"file": str(path), "version": version}, as_json=as_json)


@hub.group()
def keys() -> None:
    """Key files."""


@keys.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--purpose", type=click.Choice(["hub", "spoke"]), default="hub", show_default=True)
@_json
def new(path: Path, purpose: str, as_json: bool) -> None:
    """Make a key pair: PATH, for its owner alone, and PATH.pub to hand on. Nothing is overwritten."""
    from shared.keys import key_id, new_key_pair  # noqa: PLC0415

    found = key_id(new_key_pair(path, purpose))
    made = {"private": str(path), "public": f"{path}.pub", "purpose": purpose, "key_id": found}
    show_line(f"{path} and {path}.pub: {purpose} key {found}", made, as_json=as_json)


@hub.command()
@_json
def version(as_json: bool) -> None:
    """Print the version."""
    from shared.version import VERSION  # noqa: PLC0415

    show_line(VERSION, {"version": VERSION}, as_json=as_json)


def main() -> None:
    """Entry point: what Felloe raises on purpose is one sentence and exit status 125."""
    try:
        hub()
    except FelloeError as error:
        click.echo(f"felloe-hub: {error}", err=True)
        sys.exit(_FAILED)
