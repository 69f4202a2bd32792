"""Settings: which source wins, and that every mistake is named with its place."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from hub.config import HubSettings
from shared.config import load
from shared.errors import ConfigError
from spoke.config import SpokeSettings


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 80
    token: str = ""
    secure: bool = False
    wait_s: float = 1.0
    names: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    file: Path | None = None
    mode: Literal["json", "text"] = "json"
    limit: int | None = 7


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    http: Http = Http()


def settings(tmp_path: Path, toml: str | None = None, **environ: str) -> Http:
    file = None
    if toml is not None:
        file = tmp_path / "felloe.toml"
        file.write_text(toml)
    return load(
        Settings, "FELLOE_X", file, {f"FELLOE_X_HTTP_{k}": v for k, v in environ.items()}
    ).http


# --- who wins ----------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(["toml", "environment", "file"])))
def test_defaults_give_way_to_toml_to_the_environment_to_a_file(sources: set[str]):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("from-file\n")
        environ = {"TOKEN": "from-environment"} if "environment" in sources else {}
        if "file" in sources:
            environ["TOKEN_FILE"] = str(secret)
        toml = '[http]\ntoken = "from-toml"' if "toml" in sources else None
        found = settings(Path(folder), toml, **environ).token
    winner = next((s for s in ("file", "environment", "toml") if s in sources), None)
    assert found == (f"from-{winner}" if winner else "")


def test_sources_mix_field_by_field(tmp_path: Path):
    found = settings(tmp_path, '[http]\nhost = "::1"\nport = 1', PORT="2")
    assert (found.host, found.port, found.mode) == ("::1", 2, "json")


def test_variables_of_others_are_none_of_ours(tmp_path: Path):
    assert settings(tmp_path, HOSTNAME="x") == Http()


# --- text becomes what the field is ------------------------------------------------------------------


def test_the_environment_is_converted_by_the_fields_type(tmp_path: Path):
    found = settings(
        tmp_path,
        PORT="8080",
        SECURE="true",
        WAIT_S="0.25",
        NAMES='["a", "b"]',
        LABELS='{"gpu": "yes"}',
        FILE="/etc/x",
        MODE="text",
        LIMIT="null",
    )
    assert found == Http(
        port=8080,
        secure=True,
        wait_s=0.25,
        names=("a", "b"),
        labels={"gpu": "yes"},
        file=Path("/etc/x"),
        mode="text",
        limit=None,
    )


@pytest.mark.parametrize("secret", ["[1]", '{"a": 1}', "{", "007", "true", "null", " x ", ""])
def test_a_secret_that_looks_like_something_else_stays_text(tmp_path: Path, secret: str):
    assert settings(tmp_path, TOKEN=secret).token == secret


def test_a_secret_file_loses_only_its_last_line_ending(tmp_path: Path):
    (tmp_path / "s").write_bytes(b" two\nlines \r\n")
    assert settings(tmp_path, TOKEN_FILE=str(tmp_path / "s")).token == " two\nlines "


def test_a_path_from_toml_and_a_home_folder_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/someone")
    assert settings(tmp_path, '[http]\nfile = "a/b"').file == Path("a/b")
    assert settings(tmp_path, FILE="~/x").file == Path("/home/someone/x")


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[htpp]\nport = 1", r"no group \[htpp\]; there are http"),
        ("[http]\nprot = 1", r"\[http\] has no prot; it has .*port"),
        ("http = 1", r"`http` is a group: write \[http\]"),
        ("[http\n", "is not TOML"),
        ("[http]\nport = 65536", r"65535.*\$\.http\.port"),
        ("[http]\nport = true", r"\$\.http\.port"),
        ("[http]\nmode = 'xml'", r"\$\.http\.mode"),
        ("[http]\nfile = 7", r"\$\.http\.file"),
        ("[http]\nfile = ''", r"\$\.http\.file"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, toml: str, says: str):
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, toml)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "high", r"\$\.http\.port"),
        ("PORT", "", r"\$\.http\.port"),
        ("NAMES", "a,b", r"\$\.http\.names"),
        ("NAMES", "[a", r"\$\.http\.names"),
        ("TOKEN_FILE", "/nowhere/at/all", "FELLOE_X_HTTP_TOKEN_FILE"),
        ("TOKEN_FILE", "/", "FELLOE_X_HTTP_TOKEN_FILE"),
    ],
)
def test_a_mistake_in_the_environment_is_named(tmp_path: Path, name: str, value: str, says: str):
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, **{name: value})


def test_a_settings_file_that_is_no_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no settings file at"):
        load(Settings, "FELLOE_X", tmp_path / "absent.toml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Settings, "FELLOE_X", tmp_path, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(Settings, "FELLOE_X", tmp_path / "binary", {})


def test_a_secret_is_not_repeated_in_the_error(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load(HubSettings, "FELLOE_HUB", None, {"FELLOE_HUB_HTTP_TOKEN": "hunter2"})
    assert "hunter2" not in str(caught.value)


# --- the daemons' own settings -----------------------------------------------------------------------


def test_a_hub_and_a_spoke_need_only_what_has_no_sensible_default():
    hub = {"HTTP_TOKEN": "t" * 16, "DATABASE_FILE": "/d", "KEYS_HUB": "/k", "KEYS_SPOKES": "/s"}
    found = load(HubSettings, "FELLOE_HUB", None, {f"FELLOE_HUB_{k}": v for k, v in hub.items()})
    assert found.database.file == Path("/d")
    spoke = {"SPOKE_NAME": "zurich", "SPOKE_STATE": "/s", "KEYS_SPOKE": "/k", "KEYS_HUB": "/h"}
    theirs = load(
        SpokeSettings, "FELLOE_SPOKE", None, {f"FELLOE_SPOKE_{k}": v for k, v in spoke.items()}
    )
    assert (theirs.spoke.name, theirs.keys.hub) == ("zurich", Path("/h"))
    for kind, prefix in ((HubSettings, "FELLOE_HUB"), (SpokeSettings, "FELLOE_SPOKE")):
        with pytest.raises(ConfigError, match="missing required field"):
            load(kind, prefix, None, {})


def test_all_that_is_missing_is_said_at_once_and_how_to_give_it():
    with pytest.raises(ConfigError) as caught:
        load(HubSettings, "FELLOE_HUB", None, {"FELLOE_HUB_HTTP_TOKEN": "t" * 16})
    said = str(caught.value)
    assert "[keys] hub (or FELLOE_HUB_KEYS_HUB, or FELLOE_HUB_KEYS_HUB_FILE)" in said
    assert "[database] file" in said
    assert "HTTP_TOKEN" not in said
