"""`felloe-hub`: run a hub, bring its database up to date, make keys."""

import os
import sys
from pathlib import Path

import rich_click as click

from shared.errors import FelloeError

_FAILED = 125


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def hub() -> None:
    """The hub: REST in front, the truth in SQL, signed commands out, signed facts in.

    Settings come from a TOML file and from the environment: `[http] port` is FELLOE_HUB_HTTP_PORT, and
    FELLOE_HUB_HTTP_TOKEN_FILE names a file that holds `[http] token`.
    """


@hub.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of settings.",
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
def upgrade(path: Path) -> None:
    """Bring the database at PATH up to this version; `serve` does it by itself."""
    from hub.store import migrate  # noqa: PLC0415

    click.echo(f"{path} is at {migrate.upgrade(path)}")


@hub.group()
def keys() -> None:
    """Key files."""


@keys.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--purpose", type=click.Choice(["hub", "spoke"]), default="hub", show_default=True)
def new(path: Path, purpose: str) -> None:
    """Make a key pair: PATH, for its owner alone, and PATH.pub to hand on. Nothing is overwritten."""
    from shared.keys import key_id, new_key_pair  # noqa: PLC0415

    public = new_key_pair(path, purpose)
    click.echo(f"{path} and {path}.pub: {purpose} key {key_id(public)}")


@hub.command()
def version() -> None:
    """Print the version."""
    from hub.schemas import VERSION  # noqa: PLC0415

    click.echo(VERSION)


def main() -> None:
    """Entry point: what Felloe raises on purpose is one sentence and exit status 125."""
    try:
        hub()
    except FelloeError as error:
        click.echo(f"felloe-hub: {error}", err=True)
        sys.exit(_FAILED)
