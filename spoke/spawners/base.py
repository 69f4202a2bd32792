"""The contract of a spawner: isolated places for attempts, which outlive the daemon that started them.

The order of an attempt's life, and what must be durable before the next step (`protocol.md`, "Sandbox"):

    intent durable → prepare → handle durable → release → (terminate) → (destroy) → wait says how it ended → clean_up

`prepare` makes the sandbox but holds the agent: none of its instructions has run. Nothing durable says so yet, which
is why a daemon that died here can prove the agent never ran, and its attempt is not counted. From `release` on the
agent runs, whether or not a daemon is there. One conformance suite (`tests/conformance`) holds every spawner to this.
"""

from pathlib import Path
from typing import Protocol

import msgspec

from shared.errors import FelloeError
from shared.messages import AgentSpec, Exit, SandboxKind

HANDLE_VERSION = 1


class SetupError(FelloeError):
    """The sandbox could not be made: infrastructure, so the attempt is retried. Nothing is left behind."""

    code = "setup_failed"


class MountPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A site folder that the agent sees read-only."""

    source: str
    target: str


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt and where it keeps its files. Equal for a daemon and its successor: it is part of the intent."""

    agent: str
    gen: int
    attempt: int
    fence: int
    spec: AgentSpec
    mounts: tuple[MountPoint, ...]
    folder: Path  # holds `out`, `err` (if separate), and what the spawner adds; made by the spool, kept for readers

    @property
    def name(self) -> str:
        """A name for cgroups, jobs and logs: unique per attempt."""
        return f"{self.agent}-{self.gen}-{self.attempt}"


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """A token to find a sandbox again. Durable before the agent runs; read by later versions of the daemon."""

    version: int = HANDLE_VERSION
    kind: SandboxKind
    boot_id: str  # after a reboot nothing that it names is alive
    pid: int = 0
    pid_started: int = 0  # field 22 of /proc/<pid>/stat: tells a reused pid
    child_pid: int = 0
    child_started: int = 0
    namespace: int = 0  # inode of the pid namespace
    cgroups: tuple[str, ...] = ()
    prepared_ms: int = 0


class Spawner(Protocol):
    """A driver. Every method may be cancelled, called twice, and called by a successor of the daemon."""

    @property
    def kind(self) -> SandboxKind: ...

    def lacks(self) -> tuple[str, ...]:
        """Return the controls that this host cannot enforce, one sentence each; empty means all hold."""
        ...

    async def prepare(self, sandbox: Sandbox) -> Handle:
        """Make the sandbox and hold the agent in it. Raises SetupError, and then nothing of it is left."""
        ...

    async def release(self, sandbox: Sandbox, handle: Handle) -> None:
        """Let the agent run. A second release does no harm."""
        ...

    async def wait(self, sandbox: Sandbox, handle: Handle) -> Exit:
        """Return how it ended, once it is *gone*: no process of it is left. Side by side and repeatedly callable.

        Enforces `limits.output_bytes` (OUTPUT_CAP at twice that) and tells OUT_OF_MEMORY where the host can; the
        time-out is the supervisor's. EXIT_UNKNOWN when it is proven gone but nobody recorded a code.
        """
        ...

    async def terminate(self, sandbox: Sandbox, handle: Handle) -> None:
        """Ask the agent's own process to end (SIGTERM). Of no effect when it is gone."""
        ...

    async def destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        """End every process of it and return when all are gone. Of no effect when it is gone. Needs no release."""
        ...

    async def recover(self, sandbox: Sandbox, handle: Handle | None) -> Handle | Exit | None:
        """Find what a dead daemon left behind, from its intent and, if it got that far, the handle.

        A Handle: it is alive and adopted (release it again). An Exit: it ran and is gone. None: the agent never
        ran and never will; the attempt is not counted.
        """
        ...

    async def processes(self, sandbox: Sandbox, handle: Handle) -> int:
        """Return how many processes are alive in it, 0 when it is gone."""
        ...

    async def clean_up(self, sandbox: Sandbox, handle: Handle | None) -> None:
        """Remove what only the living sandbox needed (cgroup, FIFO). Spools stay. Of no effect the second time."""
        ...
