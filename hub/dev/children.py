"""One child process: started, started again when it ends by itself, ended for certain.

Each child is the leader of its own session, so Ctrl-C at the terminal reaches only the stack, which stops its
children in order. Output goes to a log file. A child that ends by itself is started again after 0.2 s, doubling to
5 s while it keeps ending early. `hold` and `go` are for demos and tests that want something to be away for a while.

`Popen` and a look every 50 ms rather than asyncio's subprocesses: a start has no point at which a cancellation could
leave a process that nobody knows.
"""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from hub.dev.watch import Watch

# Says a line of progress to whoever started the stack.
Say = Callable[[str], None]

_LOOK_S: Final = 0.05
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 5.0
# Who lived this long was well, and the next end is a new story.
_WELL_AFTER_S: Final = 10.0


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and where its output goes."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    folder: Path  # its working directory


class Child:
    """A supervised process. `start` once, `stop` once; `kill`, `hold` and `go` in between."""

    def __init__(self, program: Program, watch: Watch, say: Say) -> None:
        self.name = program.name
        self.program = program
        self.starts = 0
        self.early_ends = 0
        self._watch = watch
        self._say = say
        self._wanted = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Begin to keep it running."""
        self._wanted.set()
        self._task = asyncio.create_task(self._keep_running(), name=f"child {self.name}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal to the process alone, and return its pid; it is started again if that ends it."""
        pid = self.pid
        if self._process is not None:
            self._process.send_signal(number)
        return pid

    def hold(self) -> None:
        """Kill it and keep it down until `go`."""
        self._wanted.clear()
        self.kill()

    def go(self) -> None:
        """Let it run again."""
        self._wanted.set()

    async def gone(self) -> None:
        """Return when the present process of it has ended; at once when none runs."""
        while self.pid is not None:  # noqa: ASYNC110 - the kernel sets no Event
            await asyncio.sleep(_LOOK_S)

    async def stop(self, *, grace_s: float) -> None:
        """Ask it to end, insist after `grace_s`, and return when it is gone. Of no effect the second time."""
        self._wanted.clear()
        self.kill(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.gone()
        self.kill()
        await self.gone()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def last_lines(self, count: int = 12) -> str:
        """Return the end of its log, for a message about what went wrong."""
        try:
            text = self.program.log.read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-count:]) or "(an empty log)"

    async def _keep_running(self) -> None:
        wait_s = _FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began = loop.time()
            status = await self._run_once()
            well = loop.time() - began > _WELL_AFTER_S
            self.early_ends = 0 if well else self.early_ends + 1
            wait_s = _FIRST_WAIT_S if well else wait_s
            if self._wanted.is_set():
                self._say(f"{self.name} ended ({_ending(status)}), again in {wait_s:.1f} s")
                if status > 0:
                    self._say(f"the end of its log:\n{self.last_lines(5)}")
                await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)

    async def _run_once(self) -> int:
        process = self._begin()
        while (status := process.poll()) is None:  # noqa: ASYNC110 - the kernel sets no Event
            await asyncio.sleep(_LOOK_S)
        self._watch.gone(process.pid)
        return status

    def _begin(self) -> "subprocess.Popen[bytes]":
        program = self.program
        with program.log.open("ab") as log:
            self._process = subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(program.env),
                cwd=program.folder,
                start_new_session=True,
            )
        self._watch.child(self._process.pid)
        self.starts += 1
        return self._process


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit {status}"
