"""The settings of a spoke daemon. Built in the entry point by `shared.config.load` with the prefix FELLOE_SPOKE."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.ids import Name
from shared.messages import SandboxKind

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of the site that agents may ask for by name, read-only; `target` is where they see it."""

    source: str
    target: str = ""  # the same path as `source` when empty


class SpokeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who this spoke is and how much it takes on."""

    name: Name  # the same as at the hub, where `<name>.pub` is its key
    state: Path  # the state folder: must survive everything, so a disk or a persistent volume
    hub: Name = "hub"  # the id of the hub that it obeys
    labels: dict[str, str] = {}  # what selectors match
    slots: Annotated[int, Meta(ge=1, le=100_000)] = 200  # attempts alive at the same time
    # Agents queued beyond the slots; without it twice the slots.
    prefetch: Annotated[int, Meta(ge=0, le=200_000)] | None = None
    # Ceiling of queued agents, running ones not counted.
    cap: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000


class NatsGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach NATS: the spoke only dials out."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: str = ""


class QueueGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This spoke's Valkey (7.2 or later) or Redis (7.0 or later): `redis://…` or `unix:///…`."""

    url: str = "redis://127.0.0.1:6379/0"
    # Go on although `appendfsync always` is not set: a power cut then loses agents.
    allow_volatile: bool = False


class KeysGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Key files: our own private key, and the hub's public key that we pin."""

    spoke: Path
    hub: Path


class SandboxGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the site owner allows."""

    kinds: tuple[SandboxKind, ...] = ()  # empty: bubblewrap where it works, else nothing
    mounts: dict[Name, Mount] = {}  # folders that agents may ask for by name, read-only
    allow_degraded: bool = False  # start sandboxes although this host cannot enforce every control
    allow_root: bool = False  # run sandboxes although the daemon is root
    allow_host_network: bool = False  # agents that ask for `network: host` get it


class LogsGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long finished output stays here, and how the daemon itself logs."""

    keep_s: Seconds = 7 * 86_400.0  # output of ended attempts
    format: Literal["json", "text"] = "json"  # text is for a person at a terminal
    level: Literal["debug", "info", "warning", "error"] = "info"


class TimingGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Intervals; the defaults are what the architecture fixes."""

    heartbeat_s: Seconds = 10.0  # the hub takes a spoke without one for 30 s as suspect
    stop_s: Seconds = 10.0  # how long a graceful stop may take


class SpokeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a spoke daemon needs to know."""

    spoke: SpokeGroup
    keys: KeysGroup
    nats: NatsGroup = NatsGroup()
    queue: QueueGroup = QueueGroup()
    sandbox: SandboxGroup = SandboxGroup()
    logs: LogsGroup = LogsGroup()
    timing: TimingGroup = TimingGroup()
