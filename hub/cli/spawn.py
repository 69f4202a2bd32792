"""`felloe spawn`: an agent from a type or a command, and what its options become in a request."""

import asyncio
import re
from typing import TYPE_CHECKING, Any, TextIO

import rich_click as click

from hub.cli.session import asking, say, show_json
from shared.errors import BadInputError

if TYPE_CHECKING:
    from hub.client import Client
    from hub.schemas import SpawnRequest

_SECONDS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|[smhd]|)")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


class Pair(click.ParamType[tuple[str, str]]):
    """`key=value`."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        key, found, text = str(value).partition("=")
        if not found or not key:
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key, text


class Size(click.ParamType[int]):
    """Bytes, with k, M, G or T (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        number, unit = (text[:-1], text[-1:]) if text[-1:] in tuple("kmgt") else (text, "")
        try:
            return int(float(number) * _UNITS[unit])
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a size like 512M or 2G", param, ctx)


class Duration(click.ParamType[float]):
    """Seconds, or with ms, s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a duration like 30, 90s, 5m or 2h", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


@click.command("spawn")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--type", "-t", "type_", metavar="TYPE", help="An agent type; see `felloe types list`."
)
@click.option("--follow", "-f", is_flag=True, help="Print its output and end as it does.")
@click.option("--wait", "-w", is_flag=True, help="End as it does, without its output.")
@click.option(
    "--priority", "-p", metavar="1-10|NAME", help="critical, high, normal, low, bulk, or a number."
)
@click.option("--spoke", help="This spoke and no other.")
@click.option("--selector", type=Pair(), multiple=True, help="A label the spoke must have.")
@click.option("--label", "-l", type=Pair(), multiple=True, help="A label of the agent.")
@click.option("--env", "-e", type=Pair(), multiple=True, help="A variable of its environment.")
@click.option("--input", "input_", help="Text that it finds in the file $FELLOE_INPUT.")
@click.option("--input-file", type=click.File("r"), help="The same from a file; - is stdin.")
@click.option("--timeout", type=Duration(), help="End an attempt that takes longer.")
@click.option("--grace", type=Duration(), help="Between SIGTERM and SIGKILL.")
@click.option("--max-retries", type=int, help="How often a failed attempt is tried again.")
@click.option("--delay", type=Duration(), help="Start no sooner than after this.")
@click.option("--start-at", metavar="TIME", help="Start no sooner than at this RFC 3339 time.")
@click.option(
    "--deadline",
    metavar="TIME|DURATION",
    help="Expire if not started by this time, or after this long.",
)
@click.option("--hold", is_flag=True, help="Wait for `felloe release`.")
@click.option("--after", metavar="ID", multiple=True, help="Not supported yet: refused.")
@click.option("--on-lost", type=click.Choice(["wait", "rerun"]), help="So far only wait.")
@click.option(
    "--on-partition", type=click.Choice(["continue", "stop"]), help="So far only continue."
)
@click.option("--cpu", type=float, help="Cores.")
@click.option("--memory", type=Size(), help="Like 512M.")
@click.option("--pids", type=int, help="Processes and threads.")
@click.option("--disk", type=Size(), help="Like 1G.")
@click.option("--output", type=Size(), help="The most output that is kept.")
@click.option("--sandbox", type=click.Choice(["bubblewrap", "process", "simulated"]))
@click.option("--network", type=click.Choice(["none", "host"]))
@click.option("--mount", multiple=True, help="A site folder, by the name its owner gave.")
@click.option("--stderr", type=click.Choice(["merged", "separate"]), help="Keep stderr apart?")
@click.option(
    "--idempotency-key", metavar="KEY", help="Spawn once, however often this is repeated."
)
@asking
async def spawn(
    hub: "Client",
    *,
    follow: bool,
    wait: bool,
    idempotency_key: str | None,
    as_json: bool,
    **given: Any,
) -> int | None:
    """Spawn an agent: `felloe spawn --type TYPE [-- ARGS…]` or `felloe spawn -- COMMAND…`.

    Prints its id; with --follow its output, and ends with its exit status.
    """
    from hub.cli.exits import status_of  # noqa: PLC0415
    from hub.cli.follow import follow_logs, until_ended  # noqa: PLC0415

    agent = await hub.spawn(request_of(given), key=idempotency_key)
    if not (follow or wait):
        if as_json:
            show_json(agent)
        else:
            click.echo(agent.id)
        return None
    say(f"agent {agent.id}")
    try:
        if follow:
            await follow_logs(hub, agent.id, as_json=as_json)
        ended = await until_ended(hub, agent.id, tell=not (follow or as_json))
    except asyncio.CancelledError:
        say(f"agent {agent.id} goes on by itself; `felloe kill {agent.id}` ends it")
        raise
    if as_json:
        show_json(ended)
    elif status_of(ended):
        say(f"agent {agent.id} is {ended.state}: {ended.reason}")
    return status_of(ended)


def request_of(given: dict[str, Any]) -> "SpawnRequest":
    """Return the request that the options mean; raises BadInputError that names the field."""
    import msgspec  # noqa: PLC0415

    from hub.schemas import SpawnRequest  # noqa: PLC0415

    if given["input_"] is not None and given["input_file"] is not None:
        raise BadInputError("give --input or --input-file, not both")
    try:
        return msgspec.convert(_body(given), SpawnRequest)
    except msgspec.ValidationError as error:
        raise BadInputError(str(error).replace("$.", "")) from None


def _body(given: dict[str, Any]) -> dict[str, Any]:
    command = list(given["command"])
    file = given["input_file"]
    body: dict[str, Any] = {
        "type": given["type_"],
        "command": None if given["type_"] or not command else command,
        "args": command if given["type_"] else None,
        "input": given["input_"] if file is None else _read(file),
        "env": dict(given["env"]),
        "labels": dict(given["label"]),
        "selector": dict(given["selector"]),
        "spoke": given["spoke"],
        "priority": _priority(given["priority"]),
        "delay_s": given["delay"],
        "start_at": given["start_at"],
        "deadline": _deadline(given["deadline"]),
        "max_retries": given["max_retries"],
        "timeout_s": given["timeout"],
        "grace_s": given["grace"],
        "resources": _resources(given),
        "sandbox": given["sandbox"],
        "network": given["network"],
        "mounts": list(given["mount"]),
        "stderr": given["stderr"],
        "hold": given["hold"],
        "after": list(given["after"]),
        "on_lost": given["on_lost"],
        "on_partition": given["on_partition"],
    }
    return {name: value for name, value in body.items() if value is not None}


def _read(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"--input-file: the input of an agent is text in UTF-8: {error}"
        ) from None


def _resources(given: dict[str, Any]) -> dict[str, Any]:
    sizes = {"memory_bytes": "memory", "disk_bytes": "disk", "output_bytes": "output"}
    found = {
        "cpu": given["cpu"],
        "pids": given["pids"],
        **{name: given[option] for name, option in sizes.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def _priority(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _deadline(text: str | None) -> str | None:
    """A time as it is; a duration counts from now."""
    if text is None or "T" in text:
        return text
    from shared.clock import now_ms, to_iso  # noqa: PLC0415

    return to_iso(now_ms() + round(Duration().convert(text, None, None) * 1000))
