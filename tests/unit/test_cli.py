"""The CLIs without a hub: what is typed, where the hub is found, and what a command ends as."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rich_click as click
from click.testing import CliRunner

from hub.cli import exits, tables
from hub.cli.felloe import felloe
from hub.cli.felloe_hub import hub
from hub.cli.fleet import read_types_file
from hub.cli.spawn import Duration, Size, request_of, spawn
from hub.cli.where import find_hub
from hub.schemas import AgentView, ExitView, KillView, PriorityView, SpawnRequest
from shared.errors import (
    BadInputError,
    ConfigError,
    ConflictError,
    FelloeError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from shared.lifecycle import State
from shared.messages import ExitKind, OnLost, OnPartition, SandboxKind
from shared.version import VERSION
from spoke.cli.felloe_spoke import main as spoke

ROOT = Path(__file__).parents[2]
AGENT = "01a20287-f0d6-7000-9bd9-1814fe3c805c"


def ended(state: State, kind: ExitKind | None = None, **exit_: Any) -> AgentView:
    end = None
    if kind is not None:
        end = ExitView(
            kind=kind, **{"code": None, "signal": None, "detail": "", "output_bytes": 0, **exit_}
        )
    return AgentView(
        id=AGENT, tenant="default", type="", command=["a"], state=state, reason="why",
        position=None, generation=1, attempt=1, priority=PriorityView(level=5, name="normal"), spoke="zurich",
        selector={}, labels={}, sandbox=SandboxKind.BUBBLEWRAP, created_at="2026-11-22T09:00:00.000Z",
        updated_at="2026-11-22T09:00:00.000Z", observed_at=None, stale=False, start_at=None, deadline=None,
        retry_at=None, started_at=None, ended_at=None, exit=end, kill=None, max_retries=3, dead_letter=False,
    )  # fmt: skip


def typed(*args: str) -> SpawnRequest:
    """Return the request that a command line means."""
    with spawn.make_context("spawn", list(args)) as context:
        return request_of(context.params)


# --- what is typed -----------------------------------------------------------------------------------


def test_a_command_after_the_dashes_is_taken_as_it_is() -> None:
    request = typed("--label", "a=b", "--", "/bin/sh", "-c", "echo --follow")

    assert request.command == ["/bin/sh", "-c", "echo --follow"]
    assert request.labels == {"a": "b"}
    assert request.type is None


def test_with_a_type_what_follows_are_arguments() -> None:
    request = typed("--type", "lint", "--", "src", "--fast")

    assert (request.type, request.command, request.args) == ("lint", None, ["src", "--fast"])


def test_every_option_finds_its_field(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_text("data")
    request = typed(
        "-p", "high", "--spoke", "zurich", "--selector", "gpu=1", "-e", "A=b=c", "--input-file", str(file), "--timeout",
        "5m", "--grace", "500ms", "--max-retries", "0", "--delay", "1.5h", "--hold", "--cpu", "0.5", "--memory", "512M",
        "--pids", "9", "--disk", "1g", "--output", "64k", "--sandbox", "process", "--network", "host", "--mount", "src",
        "--stderr", "separate", "--on-lost", "rerun", "--on-partition", "stop", "--after", AGENT, "--", "x",
    )  # fmt: skip

    assert (request.priority, request.spoke, request.selector) == ("high", "zurich", {"gpu": "1"})
    assert (request.env, request.input) == ({"A": "b=c"}, "data")
    assert (request.timeout_s, request.grace_s, request.delay_s) == (300, 0.5, 5_400)
    assert (request.max_retries, request.hold) == (0, True)
    assert request.resources.cpu == 0.5
    assert request.resources.memory_bytes == 512 * 1024**2
    assert (request.resources.disk_bytes, request.resources.output_bytes) == (1024**3, 65_536)
    assert (request.resources.pids, request.mounts) == (9, ["src"])
    assert (request.after, request.on_lost, request.on_partition) == (
        [AGENT],
        OnLost.RERUN,
        OnPartition.STOP,
    )


def test_what_is_not_given_is_left_to_the_type_and_the_hub() -> None:
    assert typed("--", "x") == SpawnRequest(command=["x"])


def test_a_deadline_may_be_a_time_or_a_duration() -> None:
    fixed = typed("--deadline", "2030-01-02T03:04:05Z", "--", "x").deadline
    assert fixed is not None
    assert fixed.year == 2030
    assert typed("--deadline", "90s", "--", "x").deadline is not None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--priority", "11", "--", "x"), "priority"),
        (("--priority", "highest", "--", "x"), "priority"),
        (("--max-retries", "-1", "--", "x"), "max_retries"),
        (("--memory", "1k", "--", "x"), "memory_bytes"),
        (("--spoke", "Not A Name", "--", "x"), "spoke"),
        (("--start-at", "tomorrow", "--", "x"), "start_at"),
        (("--input", "a", "--input-file", "-", "--", "x"), "not both"),
    ],
)
def test_bad_values_are_refused_by_the_name_of_their_field(
    args: tuple[str, ...], said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        typed(*args)


@pytest.mark.parametrize(
    "args",
    [
        ("--label", "a", "--", "x"),
        ("--timeout", "soon", "--", "x"),
        ("--memory", "lots", "--", "x"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(args: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter):
        typed(*args)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("90s", 90), ("250ms", 0.25), ("5m", 300), ("2h", 7_200), ("1d", 86_400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("1k", 1024),
        ("512M", 512 * 1024**2),
        ("1.5GiB", 3 * 512 * 1024**2),
        ("2GB", 2 * 1024**3),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


def test_types_are_read_from_toml_and_json(tmp_path: Path) -> None:
    toml, one, many = tmp_path / "a.toml", tmp_path / "b.json", tmp_path / "c.json"
    toml.write_text('[types.lint]\ncommand = ["ruff"]\n')
    one.write_text('{"name": "lint", "command": ["ruff"]}')
    many.write_text('[{"name": "lint", "command": ["ruff"]}]')

    assert read_types_file(toml) == read_types_file(one) == read_types_file(many)
    one.write_text('{"name": "lint"}')
    with pytest.raises(BadInputError, match="command"):
        read_types_file(one)


# --- where the hub is --------------------------------------------------------------------------------


def client_file(folder: Path, url: str = "http://found:1", token: str = "of-the-file") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(f"{token}\n")
    file = folder / "client.json"
    file.write_text(msgspec.json.encode({"url": url, "token_file": "token"}).decode())
    return file


def test_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    env = {"FELLOE_URL": "http://env", "FELLOE_TOKEN": "secret"}

    assert find_hub("http://said", env, tmp_path, tmp_path).url == "http://said"
    assert find_hub(None, env, tmp_path, tmp_path).url == "http://env"


def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("secret\n")
    env = {"FELLOE_URL": "http://env", "FELLOE_TOKEN_FILE": str(tmp_path / "t")}

    assert find_hub(None, env, tmp_path, tmp_path).token == "secret"


def test_a_stack_above_the_present_folder_is_found(tmp_path: Path) -> None:
    client_file(tmp_path / ".felloe")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    where = find_hub(None, {}, below, tmp_path / "home")

    assert (where.url, where.token) == ("http://found:1", "of-the-file")


def test_the_nearest_stack_wins_over_the_one_at_home(tmp_path: Path) -> None:
    client_file(tmp_path / "home" / ".config" / "felloe", url="http://home")
    assert find_hub(None, {}, tmp_path / "x", tmp_path / "home").url == "http://home"

    client_file(tmp_path / "x" / ".felloe", url="http://near")
    assert find_hub(None, {}, tmp_path / "x", tmp_path / "home").url == "http://near"


def test_a_token_of_the_environment_never_goes_to_an_address_found_in_a_folder(
    tmp_path: Path,
) -> None:
    client_file(tmp_path / ".felloe", url="http://evil")

    assert find_hub(None, {"FELLOE_TOKEN": "secret"}, tmp_path, tmp_path).token == "of-the-file"


def test_a_token_of_a_folder_only_goes_to_its_own_address(tmp_path: Path) -> None:
    client_file(tmp_path / ".felloe", url="http://found:1")

    assert find_hub("http://found:1/", {}, tmp_path, tmp_path).token == "of-the-file"
    with pytest.raises(ConfigError, match="no token for http://other"):
        find_hub("http://other", {}, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("env", "prepare", "said"),
    [
        ({}, lambda _: None, "felloe up"),
        ({"FELLOE_URL": "127.0.0.1:8080", "FELLOE_TOKEN": "x"}, lambda _: None, "is a URL like"),
        (
            {"FELLOE_URL": "http://x", "FELLOE_TOKEN_FILE": "/absent/token"},
            lambda _: None,
            "/absent/token",
        ),
        ({}, lambda folder: client_file(folder / ".felloe").write_text("{"), "client.json"),
        (
            {},
            lambda folder: (client_file(folder / ".felloe").parent / "token").unlink(),
            "token file",
        ),
    ],
)
def test_when_no_hub_can_be_found_it_is_said_what_to_do(
    env: dict[str, str], prepare: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    with pytest.raises(ConfigError, match=said):
        find_hub(None, env, tmp_path, tmp_path)


# --- what a command ends as --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "status"),
    [
        (ended(State.SUCCEEDED, ExitKind.EXITED, code=0), 0),
        (ended(State.FAILED, ExitKind.EXITED, code=3), 3),
        (ended(State.FAILED, ExitKind.SIGNALED, signal=11), 139),
        (ended(State.KILLED, ExitKind.SIGNALED, signal=15), 143),
        (ended(State.KILLED, ExitKind.KILLED), 137),
        (ended(State.KILLED), 137),
        (ended(State.LOST), 123),
        (ended(State.FAILED, ExitKind.TIMEOUT), 124),
        (ended(State.EXPIRED), 124),
        (ended(State.FAILED, ExitKind.SETUP_FAILED), 125),
        (ended(State.FAILED, ExitKind.UNKNOWN), 125),
        (ended(State.FAILED), 125),
        (ended(State.FAILED, ExitKind.START_FAILED), 126),
        (ended(State.CANCELLED), 126),
        (ended(State.FAILED, ExitKind.OUT_OF_MEMORY), 137),
        (ended(State.FAILED, ExitKind.OUTPUT_CAP), 137),
    ],
)
def test_a_command_that_waits_ends_as_its_agent(view: AgentView, status: int) -> None:
    assert exits.status_of(view) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInputError("x"), 126),
        (NotFoundError("x"), 126),
        (ConflictError("x"), 126),
        (OverloadedError("x", retry_after_s=1), 126),
        (UnavailableError("x"), 125),
        (ConfigError("x"), 125),
        (FelloeError("x"), 125),
    ],
)
def test_a_refusal_is_126_and_a_failure_of_felloe_125(error: FelloeError, status: int) -> None:
    assert exits.status_of_error(error) == status


# --- the programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [felloe, hub, spoke])
def test_every_command_says_what_it_does(program: click.Group) -> None:
    def walk(group: click.Group, path: list[str]) -> None:
        for name, command in group.commands.items():
            asked = CliRunner().invoke(program, [*path, name, "--help"])
            assert asked.exit_code == 0, asked.output
            assert command.help, name
            if isinstance(command, click.Group):
                walk(command, [*path, name])

    walk(program, [])


def test_every_command_can_print_json() -> None:
    def asking(group: click.Group) -> list[click.Command]:
        found: list[click.Command] = []
        for command in group.commands.values():
            found += asking(command) if isinstance(command, click.Group) else [command]
        return found

    # A daemon has logs, and what the shell evaluates is for the shell.
    without = {"serve", "run", "completion"}
    for command in (*asking(felloe), *asking(hub), *asking(spoke)):
        assert command.name in without or any(p.name == "as_json" for p in command.params), (
            command.name
        )


def test_the_version_is_the_one_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == VERSION
    assert CliRunner().invoke(felloe, ["version"]).output == f"{VERSION}\n"
    assert CliRunner().invoke(hub, ["version"]).output == f"{VERSION}\n"
    for program in (felloe, hub):
        said = CliRunner().invoke(program, ["version", "--json"]).output
        assert msgspec.json.decode(said) == {"version": VERSION}


def test_help_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from hub.cli.felloe import felloe\n"
        "try: felloe(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('httpx', 'litestar', 'sqlalchemy', 'nats', 'msgspec') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=True,
    )

    assert done.stderr.strip() == "[]"


def test_a_failure_is_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "hub.cli.felloe", "ps"], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=30,
        check=False,
    )  # fmt: skip

    assert done.returncode == exits.FELLOE
    assert done.stderr.startswith("felloe: no hub is known here")
    assert "Traceback" not in done.stderr


def test_keys_are_made_once_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "hub.key"
    made = CliRunner().invoke(hub, ["keys", "new", str(path)])
    again = CliRunner().invoke(hub, ["keys", "new", str(path)])

    assert made.exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    told = CliRunner().invoke(hub, ["keys", "new", str(tmp_path / "other"), "--json"])
    assert msgspec.json.decode(told.stdout)["public"] == str(tmp_path / "other.pub")
    assert isinstance(again.exception, ConfigError)


def test_tables_show_text_that_looks_like_markup_as_it_is() -> None:
    view = msgspec.structs.replace(ended(State.RUNNING), command=["[red]x[/red]"], reason="[/]")
    with click.Context(felloe):
        from rich.console import Console

        console = Console(width=200)
        with console.capture() as captured:
            console.print(tables.agents([view]))
            console.print(tables.agent(view))
    assert "[red]x[/red]" in captured.get()
    assert "[/]" in captured.get()


def test_an_unconfirmed_kill_is_told_where_the_reason_stands() -> None:
    from rich.console import Console

    kill = KillView(requested_at="2026-11-22T09:00:00.000Z", accepted_at=None, confirmed_at=None)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tables.agents([msgspec.structs.replace(ended(State.RUNNING), kill=kill)]))
    assert "requested 2026-11-22" in captured.get()


def test_show_has_the_three_times_of_a_kill() -> None:
    from rich.console import Console

    times = [f"2026-11-22T09:00:0{n}.000Z" for n in range(3)]
    kill = KillView(requested_at=times[0], accepted_at=times[1], confirmed_at=times[2])
    console = Console(width=200)
    with console.capture() as captured:
        console.print(tables.agent(msgspec.structs.replace(ended(State.KILLED), kill=kill)))
    assert all(time in captured.get() for time in times)


def test_upgrading_a_database_prints_json_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    # As a process: it sets up the logs of its process for good.
    told = subprocess.run(
        [sys.executable, "-c", "from hub.cli.felloe_hub import main; main()", "db", "upgrade", str(path), "--json"],
        capture_output=True, cwd=ROOT, timeout=30, check=True,
    )  # fmt: skip

    assert msgspec.json.decode(told.stdout)["file"] == str(path)
