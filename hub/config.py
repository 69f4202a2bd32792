"""The settings of a hub. Built in the entry point by `shared.config.load` with the prefix FELLOE_HUB."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.ids import Name

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]


class HubGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this hub is."""

    id: Name = "hub"  # the issuer of its commands; spokes are told whom to obey
    types: Path | None = None  # a TOML file of agent types, read at start


class HttpGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The REST API."""

    host: str = "127.0.0.1"  # the address to listen on
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080  # 0: any that is free
    # The bootstrap token; give it by FELLOE_HUB_HTTP_TOKEN_FILE.
    token: Annotated[str, Meta(min_length=16)]
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 16 * 1024**2  # of a request


class DatabaseGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hub's truth. A lock file beside the database admits one hub."""

    file: Path  # SQLite, on a local disk


class NatsGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach NATS."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = ""


class KeysGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Key files: the hub's private key, and a folder with `<spoke>.pub` for each spoke that is pinned."""

    hub: Path  # made by `felloe-hub keys new`
    spokes: Path  # who is not in it is not believed


class TimingGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Intervals; the defaults are what the architecture fixes."""

    suspect_s: Seconds = 30.0  # without a heartbeat a spoke is suspect and its agents are stale
    # How long a signed command may be acted on.
    command_s: Annotated[float, Meta(gt=0, le=600)] = 300.0
    status_s: Seconds = 2.0  # how long GET …/status waits for the spoke's own answer
    stop_s: Seconds = 10.0  # how long a graceful stop may take


class LogsGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the hub itself logs."""

    format: Literal["json", "text"] = "json"  # text is for a person at a terminal
    level: Literal["debug", "info", "warning", "error"] = "info"


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a hub needs to know."""

    http: HttpGroup
    database: DatabaseGroup
    keys: KeysGroup
    hub: HubGroup = HubGroup()
    nats: NatsGroup = NatsGroup()
    timing: TimingGroup = TimingGroup()
    logs: LogsGroup = LogsGroup()
