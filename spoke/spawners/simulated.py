"""Sandboxes that only pretend, as their spec says: for load tests with thousands of agents on one machine.

Nothing is started and, unless there is output, no file is made. What lives is a future per attempt that somebody waits
for; a successor of the daemon works out from `prepared_ms` what time is left. Chance comes from the attempt's name, so
that a run can be repeated.
"""

import asyncio
import zlib
from typing import Final

from shared.clock import Clock, now_ms
from shared.messages import Exit, ExitKind, SandboxKind, Simulation
from spoke.spawners.base import Handle, Sandbox
from spoke.spawners.processes import boot_id

_SIGKILL: Final = 9
_SIGSEGV: Final = 11  # what a crash looks like
_SIGTERM: Final = 15


class _Pretence:
    """One attempt that is alive here: held until `released`, over when `ended` holds how."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()


class Simulated:
    """See `spoke.spawners.base`. Forgets an attempt at `clean_up`."""

    kind = SandboxKind.SIMULATED

    def __init__(self, *, clock: Clock = now_ms) -> None:
        self._clock = clock
        self._pretences: dict[str, _Pretence] = {}

    def lacks(self) -> tuple[str, ...]:
        return ()

    async def prepare(self, sandbox: Sandbox) -> Handle:
        self._pretences[sandbox.name] = _Pretence()
        return Handle(kind=self.kind, boot_id=boot_id(), prepared_ms=self._clock())

    async def release(self, sandbox: Sandbox, handle: Handle) -> None:
        pretence = self._find(sandbox)
        if not pretence.released.is_set():
            pretence.released.set()
            _write(sandbox)

    async def wait(self, sandbox: Sandbox, handle: Handle) -> Exit:
        pretence = self._find(sandbox)
        if not pretence.released.is_set() and not pretence.ended.done():
            released = asyncio.ensure_future(pretence.released.wait())
            try:
                await asyncio.wait((released, pretence.ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                released.cancel()
        left_s = (_over_ms(sandbox, handle) - self._clock()) / 1_000
        if left_s > 0 and not pretence.ended.done():
            await asyncio.wait((pretence.ended,), timeout=left_s)
        if not pretence.ended.done():
            pretence.ended.set_result(_ending(sandbox, handle))
        return pretence.ended.result()

    async def terminate(self, sandbox: Sandbox, handle: Handle) -> None:
        self._end(sandbox, handle, _SIGTERM)

    async def destroy(self, sandbox: Sandbox, handle: Handle) -> None:
        self._end(sandbox, handle, _SIGKILL)

    async def recover(self, sandbox: Sandbox, handle: Handle | None) -> Handle | Exit | None:
        if handle is None:
            self._pretences.pop(sandbox.name, None)
            return None
        if handle.boot_id != boot_id():
            return Exit(kind=ExitKind.UNKNOWN, detail="gone with the boot that it lived in")
        if _over_ms(sandbox, handle) > self._clock():
            return handle
        _write(sandbox)
        return _ending(sandbox, handle)

    async def processes(self, sandbox: Sandbox, handle: Handle) -> int:
        pretence = self._find(sandbox)
        is_over = pretence.ended.done() or (
            pretence.released.is_set() and _over_ms(sandbox, handle) <= self._clock()
        )
        return 0 if is_over else 1

    async def clean_up(self, sandbox: Sandbox, handle: Handle | None) -> None:
        self._pretences.pop(sandbox.name, None)

    def _find(self, sandbox: Sandbox) -> _Pretence:
        """Return the attempt's pretence; in a successor of its daemon it begins here."""
        return self._pretences.get(sandbox.name) or self._pretences.setdefault(
            sandbox.name, _Pretence()
        )

    def _end(self, sandbox: Sandbox, handle: Handle, number: int) -> None:
        ended = self._find(sandbox).ended
        if not ended.done() and self._clock() < _over_ms(sandbox, handle):
            ended.set_result(
                Exit(
                    kind=ExitKind.SIGNALED,
                    signal=number,
                    started_ms=handle.prepared_ms,
                    ended_ms=self._clock(),
                    output_bytes=len(_simulation(sandbox).output.encode()),
                )
            )


def _simulation(sandbox: Sandbox) -> Simulation:
    return sandbox.spec.simulation or Simulation()


def _over_ms(sandbox: Sandbox, handle: Handle) -> int:
    return handle.prepared_ms + _simulation(sandbox).duration_ms


def _write(sandbox: Sandbox) -> None:
    """Write all of the output at once. Of no effect the second time."""
    output = _simulation(sandbox).output
    if output:
        sandbox.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (sandbox.folder / "out").write_text(output)


def _ending(sandbox: Sandbox, handle: Handle) -> Exit:
    simulation = _simulation(sandbox)
    crashed = zlib.crc32(sandbox.name.encode()) % 1_000 < simulation.crash_per_mille
    return Exit(
        kind=ExitKind.SIGNALED if crashed else ExitKind.EXITED,
        code=None if crashed else simulation.exit_code,
        signal=_SIGSEGV if crashed else None,
        started_ms=handle.prepared_ms,
        ended_ms=_over_ms(sandbox, handle),
        output_bytes=len(simulation.output.encode()),
    )
