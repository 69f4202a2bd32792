"""What one embedded stack consists of, drawn up before anything is started.

    <folder>/            mode 0700: it holds every key and password of the stack
      stack.json         ports, passwords, the mark: kept, so that a stack comes back as itself
      token              the hub's bootstrap token, mode 0600
      client.json        where the hub is: the CLI looks for it in .felloe/
      logs/  source/     each child's log; the snapshot of our own sources that agents see at /src
      nats/  hub/        settings, keys, database
      <spoke>/           settings, key, state folder, Valkey's append-only file
    <run>/               sockets; a folder of its own with a short name, since a socket's path has at most 107 bytes

Settings are written anew at every start from the same facts; keys, passwords and ports are made once.
"""

import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from shared.errors import ConfigError
from shared.keys import new_key_pair, write_whole

# Below what systems hand out for outgoing connections (32768 or 49152 on), so that nobody takes a port by chance
# between our look and the child's bind.
_PORTS: Final = range(20_000, 32_000)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo, a test or a bench wants otherwise."""

    spokes: tuple[str, ...] = ("zurich", "geneva")
    slots: int = 16
    prefetch: int | None = None
    cap: int = 2_000
    simulated: bool = False  # offer the sandbox that only pretends
    tap: bool = False  # a NATS user that hears everything and can put commands on the wire
    heartbeat_s: float = 10.0
    suspect_s: float = 30.0
    hub_port: int = 0  # 0: any that is free


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is made once: the file stack.json."""

    hub_port: int
    nats_port: int
    passwords: dict[str, str]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything of one stack is."""

    folder: Path
    run: Path
    facts: Facts
    options: Options

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.facts.hub_port}"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.facts.nats_port}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def mark(self) -> str:
        """What every child bears in its environment."""
        return str(self.folder)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def settings(self, name: str) -> Path:
        """Return the settings file of `nats`, `hub` or a spoke."""
        return self.folder / name / ("nats.conf" if name == "nats" else f"{name}.toml")

    def socket(self, spoke: str) -> Path:
        return self.run / f"{spoke}.sock"


def draw_up(folder: Path | None, options: Options) -> Plan:
    """Make the folders, keys and secrets that are not there yet; None is a temporary folder."""
    run = Path(tempfile.mkdtemp(prefix="felloe-"))
    try:
        return _draw_up(run, folder.absolute() if folder is not None else run / "stack", options)
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise


def _draw_up(run: Path, folder: Path, options: Options) -> Plan:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("logs", "nats", "hub/spokes", *(f"{spoke}/valkey" for spoke in options.spokes)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    facts = _facts(folder / "stack.json", options)
    plan = Plan(folder=folder, run=run, facts=facts, options=options)
    if not plan.token_file.exists():
        token = secrets.token_urlsafe(32).encode()
        write_whole(plan.token_file, token + b"\n", mode=0o600)
    # Where the CLI finds us: `hub.cli.where`.
    client = {"url": plan.url, "token_file": plan.token_file.name}
    write_whole(folder / "client.json", msgspec.json.encode(client), mode=0o600)
    _make_keys(plan)
    return plan


def lock(folder: Path) -> int:
    """Hold the folder for one stack, and return what to close afterwards; raises ConfigError."""
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigError(
            f"a stack is already up in {folder}: use it, or name another with --folder"
        ) from None
    return file


def _facts(file: Path, options: Options) -> Facts:
    users = ("hub", *options.spokes, *(("tap",) if options.tap else ()))
    old = msgspec.json.decode(file.read_bytes(), type=Facts) if file.exists() else None
    known = old.passwords if old is not None else {}
    facts = Facts(
        hub_port=_port(options.hub_port or (old.hub_port if old is not None else 0)),
        nats_port=_port(old.nats_port if old is not None else 0),
        passwords={user: known.get(user) or secrets.token_urlsafe(24) for user in users},
    )
    write_whole(file, msgspec.json.encode(facts), mode=0o600)
    return facts


def _make_keys(plan: Plan) -> None:
    pairs = {plan.folder / "hub" / "key": "hub"}
    pairs |= {plan.folder / spoke / "key": "spoke" for spoke in plan.options.spokes}
    for path, purpose in pairs.items():
        if not path.exists():
            new_key_pair(path, purpose)
    for spoke in plan.options.spokes:
        public = (plan.folder / spoke / "key.pub").read_bytes()
        write_whole(plan.folder / "hub" / "spokes" / f"{spoke}.pub", public, mode=0o644)


def free_port() -> int:
    """Return a port that nobody listens on; raises ConfigError."""
    for _ in range(1_000):
        port = secrets.choice(_PORTS)
        if _is_free(port):
            return port
    raise ConfigError(f"no free port on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop}")


def _port(wanted: int) -> int:
    """Return the wanted port if it is free, else one that is."""
    return wanted if wanted and _is_free(wanted) else free_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port that only waits out its last connections (TIME_WAIT) is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
