"""`felloe-spoke`: run the daemon of a site, ask what its host can do, end what it left behind.

Settings come from defaults, a TOML file, the environment (`FELLOE_SPOKE_<GROUP>_<FIELD>`) and files that the
environment names (`…_FILE`), in this order. Exit status: 0, or 125 where Felloe itself failed, with the reason on
stderr; `doctor` gives 1 when something is missing.
"""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that `--help` answers at once

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from spoke.config import SpokeSettings

T = TypeVar("T")

_FAILED: Final = 125

_config = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FELLOE_SPOKE_CONFIG",
    help="TOML file with the settings.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The daemon at a site: it only dials out, and runs what its hub has signed."""


@main.command()
@_config
def run(file: Path | None) -> None:
    """Run the daemon until it is stopped. SIGTERM stops it and leaves its sandboxes running."""
    from shared.service import run as run_service
    from spoke.daemon import serve

    settings = _settings(file)
    _set_up_logs(settings)
    sys.exit(run_service(lambda stop: serve(settings, stop)))


@main.command()
@_config
@_json
def doctor(file: Path | None, *, as_json: bool) -> None:
    """Say what this host can enforce, and whether keys, queue and NATS can be reached."""
    import asyncio

    from spoke.cli.doctor import examine, show

    settings = _settings(file)
    found = asyncio.run(examine(settings))
    show(found, as_json=as_json)
    sys.exit(0 if all(finding.ok for finding in found) else 1)


@main.command()
@_config
@_json
def destroy(file: Path | None, *, as_json: bool) -> None:
    """End every live sandbox of the state folder. The daemon must not be running."""
    from spoke.cli.destroy import destroy_sandboxes

    settings = _settings(file)
    _set_up_logs(settings)
    ended = _or_fail(lambda: destroy_sandboxes(settings))
    if as_json:
        import msgspec

        print(msgspec.json.encode([key._asdict() for key in ended]).decode())
    else:
        print(f"{len(ended)} sandboxes ended")


@main.command()
@_json
def version(*, as_json: bool) -> None:
    """Print the version."""
    from shared.version import VERSION

    if as_json:
        import msgspec

        print(msgspec.json.encode({"version": VERSION}).decode())
    else:
        print(VERSION)


def _settings(file: Path | None) -> "SpokeSettings":
    from shared.config import load
    from spoke.config import SpokeSettings

    return _or_fail(lambda: load(SpokeSettings, "FELLOE_SPOKE", file, os.environ))


def _set_up_logs(settings: "SpokeSettings") -> None:
    from shared.telemetry import set_up_logs

    set_up_logs(as_json=settings.logs.format == "json", level=settings.logs.level)


def _or_fail(call: Callable[[], T]) -> T:
    """Return what `call` gives; an error that we raise on purpose is one line on stderr."""
    from shared.errors import FelloeError

    try:
        return call()
    except FelloeError as error:
        print(f"felloe-spoke: {error}", file=sys.stderr)
        sys.exit(_FAILED)
