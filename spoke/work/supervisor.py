"""One attempt, alive: the shell around the machine of `spoke.core.attempt`.

It does what the machine instructs, one main instruction at a time, and tells it what happened; kills and timers are
told whenever they come. It decides nothing itself. Cancelling it leaves the sandbox as it is: a graceful stop of the
daemon is no reason to end an agent, and the successor finds everything it needs in the state folder.

What a spawner raises beyond its contract while the agent cannot have run yet counts as a failed set-up; a `Destroy`
is tried until it works, because a kill is certain.
"""

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any, Final, assert_never

import msgspec
import structlog

from shared.clock import Clock
from shared.messages import Exit
from spoke.core.attempt import (
    ArmTimer,
    Attempt,
    AttemptEvent,
    CleanedUp,
    CleanUp,
    Destroy,
    Discard,
    Discarded,
    Exited,
    ExitWritten,
    Finish,
    Finished,
    HandBack,
    HandedBack,
    HandleWritten,
    Instruction,
    KillRequested,
    MainInstruction,
    NoteStarted,
    Phase,
    Prepare,
    Prepared,
    Release,
    Released,
    SetupFailed,
    Terminate,
    Timer,
    TimerFired,
    Wait,
    WriteExit,
    WriteHandle,
)
from spoke.queue.entries import End, Note
from spoke.spawners.base import Handle, Sandbox, Spawner
from spoke.state.handles import Key
from spoke.work.ledger import Ledger
from spoke.work.logs import note_cap

log = structlog.get_logger()

_AGAIN_S: Final = 0.5
_encode: Final = msgspec.json.Encoder().encode
# Phases in which no more output can come.
_GONE: Final = frozenset(
    {Phase.RECORDING, Phase.FINISHING, Phase.CLEANING, Phase.HANDING_BACK, Phase.DONE}
)


class Supervisor:
    """Built for one lease or one recovered record; `run` is its one task."""

    def __init__(
        self,
        *,
        sandbox: Sandbox,
        retries: int,
        spawner: Spawner,
        ledger: Ledger,
        prepares: asyncio.Semaphore,
        now: Clock,
        handle: Handle | None = None,
    ) -> None:
        """`prepares` limits how many sandboxes are made at the same time."""
        self.sandbox = sandbox
        self._key = Key(sandbox.agent, sandbox.gen, sandbox.attempt)
        self._machine = Attempt(sandbox.spec, retries)
        self._spawner = spawner
        self._ledger = ledger
        self._prepares = prepares
        self._now = now
        self._handle = handle
        self._next: MainInstruction | None = None
        self._started: asyncio.Future[bool] | None = None
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._aside: set[asyncio.Task[None]] = set()

    @property
    def is_gone(self) -> bool:
        """Whether no more output can come."""
        return self._machine.phase in _GONE

    async def processes(self) -> int:
        """Return how many processes are alive in the sandbox."""
        if self._handle is None or self.is_gone:
            return 0
        return await self._spawner.processes(self.sandbox, self._handle)

    def kill(self, grace_ms: int | None, reason: str) -> None:
        """Have the attempt ended; idempotent, and too late it does no harm."""
        self.tell(KillRequested(now_ms=self._now(), grace_ms=grace_ms, reason=reason))

    def say_again(self) -> None:
        """Report `running` to a queue that has begun a new incarnation, if it was reported to the old one."""
        if self._started is not None and not self.is_gone:
            self._started = self._ledger.started(self._note())

    def tell(self, event: AttemptEvent) -> None:
        """Let the machine know, and start what it instructs."""
        for instruction in self._machine.handle(event):
            self._take(instruction)

    async def run(self) -> None:
        """Drive the attempt to its end, from the first event that it was told. Raises what the ledger raises."""
        try:
            while self._next is not None:
                instruction, self._next = self._next, None
                self.tell(await self._do(instruction))
        finally:
            await self._stop_aside()

    def _take(self, instruction: Instruction) -> None:
        match instruction:
            case NoteStarted():
                self._started = self._ledger.started(self._note())
            case ArmTimer():
                self._arm(instruction)
            case Terminate():
                self._do_aside(self._terminate())
            case Destroy():
                self._do_aside(self._destroy())
            case _:
                self._next = instruction

    # --- the main lane ----------------------------------------------------------------------------

    async def _do(self, instruction: MainInstruction) -> AttemptEvent:  # noqa: PLR0911 - one arm per instruction
        match instruction:
            case Prepare():
                return await self._prepare()
            case WriteHandle():
                await self._ledger.hold(self._key, _encode(self._handle))
                return HandleWritten()
            case Release():
                return await self._release()
            case Wait():
                return Exited(exit=await self._wait())
            case Discard():
                await self._destroy()
                return Discarded()
            case WriteExit():
                await self._ledger.ended(self._key, instruction.exit)
                return ExitWritten(now_ms=self._now(), chance=random.random())  # noqa: S311 - jitter
            case Finish():
                return await self._finish(instruction)
            case HandBack():
                await self._ledger.hand_back(self._note())
                return HandedBack()
            case CleanUp():
                await self._clean_up()
                return CleanedUp()
            case _:
                assert_never(instruction)

    async def _prepare(self) -> AttemptEvent:
        async with self._prepares:
            try:
                self._handle = await self._spawner.prepare(self.sandbox)
            except Exception as error:  # noqa: BLE001 - see the module's story
                return self._setup_failed(error)
        return Prepared()

    async def _release(self) -> AttemptEvent:
        try:
            await self._spawner.release(self.sandbox, self._live())
        except Exception as error:  # noqa: BLE001 - see the module's story
            await self._destroy()
            return self._setup_failed(error)
        return Released()

    def _setup_failed(self, error: Exception) -> SetupFailed:
        log.warning("setup_failed", attempt=self.sandbox.name, error=str(error) or repr(error))
        return SetupFailed(detail=str(error) or repr(error))

    async def _wait(self) -> Exit:
        end = await self._ended()
        if end.output_bytes > self.sandbox.spec.limits.output_bytes:
            try:
                note_cap(self.sandbox)
            except OSError as error:
                # So much output may have filled the disk; readers then get more of it than they should.
                log.warning("cap_not_noted", attempt=self.sandbox.name, error=str(error))
        return end

    async def _ended(self) -> Exit:
        while True:
            try:
                return await self._spawner.wait(self.sandbox, self._live())
            except Exception:  # whatever it is, the agent may live: a kill must still reach it
                log.exception("wait_failed", attempt=self.sandbox.name)
                await asyncio.sleep(_AGAIN_S)

    async def _finish(self, finish: Finish) -> Finished:
        if self._started is not None:
            await self._started
        end = End(
            agent=self.sandbox.agent,
            gen=self.sandbox.gen,
            attempt=self.sandbox.attempt,
            fence=self.sandbox.fence,
            kind=finish.kind,
            reason=finish.reason,
            exit=finish.exit,
            retry_at=finish.retry_at,
            dead=finish.dead,
        )
        accepted = await self._ledger.finish(end)
        if not accepted:
            log.warning("finish_was_stale", attempt=self.sandbox.name, kind=finish.kind)
        return Finished(accepted=accepted)

    async def _clean_up(self) -> None:
        try:
            await self._spawner.clean_up(self.sandbox, self._handle)
        except Exception:  # it is gone and its outcome is told; a left-over folder harms nobody
            log.exception("clean_up_failed", attempt=self.sandbox.name)
        await self._ledger.forget(self._key)

    # --- the side lane ----------------------------------------------------------------------------

    def _arm(self, timer: ArmTimer) -> None:
        known = self._timers.pop(timer.timer, None)
        if known is not None:
            known.cancel()
        loop = asyncio.get_running_loop()
        fired = TimerFired(timer=timer.timer)
        self._timers[timer.timer] = loop.call_later(timer.after_ms / 1000, self.tell, fired)

    def _do_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def _terminate(self) -> None:
        try:
            await self._spawner.terminate(self.sandbox, self._live())
        except Exception as error:  # noqa: BLE001 - after the grace it is destroyed anyway
            log.warning("terminate_failed", attempt=self.sandbox.name, error=str(error))

    async def _destroy(self) -> None:
        while True:
            try:
                return await self._spawner.destroy(self.sandbox, self._live())
            except Exception as error:  # noqa: BLE001 - a kill is certain: tried until it works
                log.warning("destroy_failed", attempt=self.sandbox.name, error=str(error))
                await asyncio.sleep(_AGAIN_S)

    async def _stop_aside(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._aside:
            task.cancel()
        if self._aside:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*self._aside, return_exceptions=True)

    # --- names --------------------------------------------------------------------------------------

    def _live(self) -> Handle:
        if self._handle is None:
            raise RuntimeError(f"{self.sandbox.name} has no handle yet")
        return self._handle

    def _note(self) -> Note:
        sandbox = self.sandbox
        return Note(
            agent=sandbox.agent, gen=sandbox.gen, attempt=sandbox.attempt, fence=sandbox.fence
        )
