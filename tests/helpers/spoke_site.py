"""A real spoke daemon as a child process, with a real NATS and a real Valkey of its own.

Each server is a child that is ended whatever the test does, and can be killed and started again on the same data.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tests.helpers.hub_peer import HubPeer
from tests.helpers.valkey import ValkeyServer

ROOT: Final = Path(__file__).parents[2]
_START_S: Final = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NatsServer:
    """A plain nats-server without users on loopback."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._log = folder / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        beside = Path(sys.executable).parent / "nats-server"
        program = str(beside) if beside.exists() else shutil.which("nats-server")
        assert program, "there is no nats-server"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-a", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class Site:
    """The folder, the servers and the daemon of one spoke, `zurich`. Ended by `close`, always."""

    def __init__(self, folder: Path, **settings: dict[str, Any]) -> None:
        self.folder = folder
        self.nats = NatsServer(folder)
        self.valkey = ValkeyServer()
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        HubPeer.make_keys(folder)

    @property
    def log(self) -> str:
        return (self.folder / "spoke.log").read_text()

    @property
    def arguments(self) -> list[str]:
        return ["--config", str(self.folder / "spoke.toml")]

    def start(self) -> int:
        """Start the daemon and return its pid."""
        self._write_settings()
        with (self.folder / "spoke.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "spoke", "run", *self.arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process.pid

    def ask(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another `felloe-spoke` command to its end."""
        self._write_settings()
        return subprocess.run(
            [sys.executable, "-m", "spoke", *arguments, *self.arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    async def said(self, text: str) -> None:
        """Return once the daemon's log holds `text`."""
        deadline = time.monotonic() + _START_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.log}"
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """kill -9 of the daemon alone: its sandboxes are in sessions of their own."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.process.wait, 20)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        self.nats.kill()
        self.valkey.close()
        if (self.folder / "state").exists():
            ended = self.ask("destroy")
            assert ended.returncode == 0, ended.stderr

    def _write_settings(self) -> None:
        groups: dict[str, dict[str, Any]] = {
            "spoke": {"name": "zurich", "state": str(self.folder / "state"), "slots": 8},
            "keys": {
                "spoke": str(self.folder / "zurich.key"),
                "hub": str(self.folder / "hub.key.pub"),
            },
            "nats": {"url": self.nats.url},
            "queue": {"url": self.valkey.url},
            "sandbox": {
                "kinds": ["bubblewrap", "simulated"],
                "allow_degraded": True,
                "allow_root": True,
            },
            "timing": {"heartbeat_s": 0.5, "stop_s": 2},
        }
        for name, fields in self._settings.items():
            groups[name] = groups.get(name, {}) | fields
        # JSON's values, but for null, are TOML's too.
        lines = [
            line
            for name, fields in groups.items()
            for line in (f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in fields.items()))
        ]
        (self.folder / "spoke.toml").write_text("\n".join(lines) + "\n")


@contextlib.asynccontextmanager
async def running_site(
    folder: Path, **settings: dict[str, Any]
) -> AsyncIterator[tuple[Site, HubPeer]]:
    """A daemon that its scripted hub has welcomed."""
    site = Site(folder, **settings)
    peer: HubPeer | None = None
    try:
        site.nats.start()
        site.valkey.start()
        peer = await HubPeer.open(site.nats.url, folder)
        site.start()
        await welcomed(site, peer)
        yield site, peer
    finally:
        if peer is not None:
            await peer.close()
        site.close()


async def welcomed(site: Site, peer: HubPeer, hellos: int = 1) -> None:
    """Return once the spoke has said hello so often and a heartbeat after it."""
    before = len(peer.heartbeats)
    try:
        await peer.wait_for(
            lambda p: len(p.hellos) >= hellos and len(p.heartbeats) > before,
            "heartbeat",
            timeout_s=15,
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{site.log}") from None


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
