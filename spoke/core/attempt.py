"""The life of one attempt: events in, instructions out.

An attempt is one try to run an agent under one lease. Things happen to it in an order that nobody controls: a kill
arrives while the sandbox is being made, the agent ends in the moment its time runs out, the daemon dies between two
writes. So everything that decides lives in this one machine, and everything that acts lives in the shell around it
(`spoke.work.supervisor`): what happened goes in as an event, what to do comes out as instructions. The machine reads
no clock and touches nothing, which makes every race a test of a few lines.

    IntentWritten ─▶ Prepare ─▶ WriteHandle ─▶ Release ─▶ NoteStarted, Wait ─▶ WriteExit ─▶ Finish ─▶ CleanUp
         │              │            │                      │   ▲
      Denied            └─ a kill ───┴─▶ Discard            └───┴─ a kill or the time-out: Terminate, then Destroy
         └─▶ Finish                         └─▶ Finish

There are two lanes. The *main* lane is the row above: exactly one instruction of it is at work at any time, and each
is answered by one event. The *side* lane (`ArmTimer`, `Terminate`, `Destroy`, `NoteStarted`) is answered by nothing;
what it brings about shows in the end of `Wait`. A kill and a timer may come at any moment, also twice, also too late.

What must hold, whatever happens:
- The agent runs only after its handle is durable: no `Release` before `HandleWritten`.
- A kill that is seen before `Release` means that the agent never runs. After it, the agent is asked to end, and when
  the grace is over it is made to. Asking again never prolongs the grace; asking with less shortens it.
- A time-out takes the same path, and ends as TIMEOUT whatever code the agent leaves with.
- A kill that was seen before the end makes the outcome `killed`, whatever the exit. One that comes after the end
  changes a success or a failure no more; it only stops what would have been a retry.
- One `Finish`, and after `Exited` always one: decided from what is durable, so a successor decides the same.

A successor of a dead daemon enters in the middle: `Adopted` (alive: release it again, no harm is done), `Exited` (it
ran and is gone), `ExitFound` (that was even written down) or `NeverRan` (the attempt is not counted: clean up, then
hand it back; not the other way round, since it may be leased again under the same number at once).
"""

import signal
from enum import StrEnum
from typing import Final, assert_never

import msgspec

from shared.messages import AgentSpec, EventKind, Exit, ExitKind
from shared.retry import may_retry, retry_delay_ms, succeeded

# `shared.messages.Text`
_MAX_REASON: Final = 1024


class Timer(StrEnum):
    """Each exists once per attempt; arming it again replaces it."""

    TIMEOUT = "timeout"
    GRACE = "grace"


class _Fact(msgspec.Struct, frozen=True, kw_only=True):
    """Base of events and instructions."""


# --- events ------------------------------------------------------------------------------------------


class IntentWritten(_Fact, frozen=True):
    """The attempt is leased and its intent durable."""


class Denied(_Fact, frozen=True):
    """The site's policy forbids what was accepted under an earlier one."""

    detail: str


class Prepared(_Fact, frozen=True):
    """The sandbox exists and holds the agent."""


class SetupFailed(_Fact, frozen=True):
    """The sandbox could not be made, and nothing of it is left."""

    detail: str


class HandleWritten(_Fact, frozen=True):
    """The handle is durable."""


class Released(_Fact, frozen=True):
    """The agent runs."""


class TimerFired(_Fact, frozen=True):
    timer: Timer


class KillRequested(_Fact, frozen=True):
    """`grace_ms` None means the agent's own."""

    now_ms: int
    grace_ms: int | None
    reason: str


class Exited(_Fact, frozen=True):
    """The sandbox is gone, and this is how the agent ended."""

    exit: Exit


class ExitWritten(_Fact, frozen=True):
    """The exit is durable. `chance`, uniform in [0, 1), is the jitter of a retry."""

    now_ms: int
    chance: float


class Discarded(_Fact, frozen=True):
    """A sandbox that was never released is gone."""


class Finished(_Fact, frozen=True):
    """The queue knows the end; `accepted` False where the fence was stale."""

    accepted: bool


class HandedBack(_Fact, frozen=True):
    """The queue has the attempt back."""


class CleanedUp(_Fact, frozen=True):
    """Nothing of the attempt is left but its spools."""


class Adopted(_Fact, frozen=True):
    """A dead daemon left it alive, `ran_ms` after its sandbox was made."""

    ran_ms: int


class ExitFound(_Fact, frozen=True):
    """A dead daemon wrote the exit down, but perhaps did not finish."""

    exit: Exit
    now_ms: int
    chance: float


class NeverRan(_Fact, frozen=True):
    """A dead daemon left an intent; the agent never ran and never will under this attempt."""


AttemptEvent = (
    IntentWritten
    | Denied
    | Prepared
    | SetupFailed
    | HandleWritten
    | Released
    | TimerFired
    | KillRequested
    | Exited
    | ExitWritten
    | Discarded
    | Finished
    | HandedBack
    | CleanedUp
    | Adopted
    | ExitFound
    | NeverRan
)

# --- instructions ------------------------------------------------------------------------------------


class Prepare(_Fact, frozen=True):
    """→ Prepared | SetupFailed"""


class WriteHandle(_Fact, frozen=True):
    """→ HandleWritten"""


class Release(_Fact, frozen=True):
    """→ Released | SetupFailed"""


class Wait(_Fact, frozen=True):
    """→ Exited"""


class Discard(_Fact, frozen=True):
    """Destroy what never ran → Discarded"""


class WriteExit(_Fact, frozen=True):
    """→ ExitWritten"""

    exit: Exit


class Finish(_Fact, frozen=True):
    """→ Finished"""

    kind: EventKind
    reason: str
    exit: Exit | None
    retry_at: int | None = None
    dead: bool = False  # its retries are used up, though another one could have ended differently


class HandBack(_Fact, frozen=True):
    """→ HandedBack"""


class CleanUp(_Fact, frozen=True):
    """→ CleanedUp"""


class NoteStarted(_Fact, frozen=True):
    """Tell the queue that the agent runs; it must know before `Finish`."""


class ArmTimer(_Fact, frozen=True):
    timer: Timer
    after_ms: int


class Terminate(_Fact, frozen=True):
    """Ask the agent to end."""


class Destroy(_Fact, frozen=True):
    """End every process of it; tried again until it works."""


MainInstruction = (
    Prepare | WriteHandle | Release | Wait | Discard | WriteExit | Finish | HandBack | CleanUp
)
SideInstruction = NoteStarted | ArmTimer | Terminate | Destroy
Instruction = MainInstruction | SideInstruction


class Phase(StrEnum):
    """Which main instruction is at work."""

    INTENDED = "intended"
    PREPARING = "preparing"
    HOLDING = "holding"  # the sandbox is there, its handle is being written
    RELEASING = "releasing"
    RUNNING = "running"
    DISCARDING = "discarding"
    RECORDING = "recording"  # gone, its exit is being written
    FINISHING = "finishing"
    HANDING_BACK = "handing_back"
    CLEANING = "cleaning"
    DONE = "done"


class Attempt:
    """The machine. `handle` is its only verb; one caller at a time."""

    def __init__(self, spec: AgentSpec, retries: int) -> None:
        """`retries` is how many retries of this agent were used before this attempt."""
        self.phase = Phase.INTENDED
        self._spec = spec
        self._retries = retries
        self._kill: KillRequested | None = None
        self._grace_until: int | None = None
        self._timed_out = False
        self._destroying = False
        self._never_ran = False
        self._ran_ms = 0
        self._exit: Exit | None = None

    def handle(self, event: AttemptEvent) -> list[Instruction]:  # noqa: C901, PLR0911, PLR0912 - one arm per event
        """Return what to do now. Raises ValueError for an answer that nothing asked for."""
        match event:
            case KillRequested():
                return self._on_kill(event)
            case TimerFired():
                return self._on_timer(event.timer)
            case IntentWritten():
                self._leave(Phase.INTENDED)
                return self._killed_early() or self._go(Phase.PREPARING, Prepare())
            case Denied():
                self._leave(Phase.INTENDED)
                reason = _cut(f"policy: {event.detail}")
                return self._finish(Finish(kind=EventKind.FAILED, reason=reason, exit=None))
            case Prepared():
                self._leave(Phase.PREPARING)
                return self._go(Phase.HOLDING, WriteHandle())
            case SetupFailed():
                self._leave(Phase.PREPARING, Phase.RELEASING)
                return self._end(Exit(kind=ExitKind.SETUP_FAILED, detail=_cut(event.detail)))
            case HandleWritten():
                self._leave(Phase.HOLDING)
                if self._kill is not None:
                    return self._go(Phase.DISCARDING, Discard())
                return self._go(Phase.RELEASING, Release())
            case Adopted():
                self._leave(Phase.INTENDED)
                self._ran_ms = event.ran_ms
                if self._kill is not None:
                    return self._run()
                return self._go(Phase.RELEASING, Release())
            case Released():
                self._leave(Phase.RELEASING)
                return self._run()
            case Exited():
                self._leave(Phase.RUNNING, Phase.INTENDED)
                return self._end(event.exit)
            case Discarded():
                self._leave(Phase.DISCARDING)
                return self._finish(self._killed(None))
            case ExitWritten():
                self._leave(Phase.RECORDING)
                return self._finish(self._outcome(event.now_ms, event.chance))
            case ExitFound():
                self._leave(Phase.INTENDED)
                self._exit = event.exit
                return self._finish(self._outcome(event.now_ms, event.chance))
            case NeverRan():
                self._leave(Phase.INTENDED)
                self._never_ran = self._kill is None
                return self._killed_early() or self._go(Phase.CLEANING, CleanUp())
            case Finished():
                self._leave(Phase.FINISHING)
                return self._go(Phase.CLEANING, CleanUp())
            case CleanedUp():
                self._leave(Phase.CLEANING)
                if self._never_ran:
                    return self._go(Phase.HANDING_BACK, HandBack())
                self.phase = Phase.DONE
                return []
            case HandedBack():
                self._leave(Phase.HANDING_BACK)
                self.phase = Phase.DONE
                return []
            case _:
                assert_never(event)

    # --- the end, asked for -----------------------------------------------------------------------------

    def _on_kill(self, event: KillRequested) -> list[Instruction]:
        self._kill = self._kill or event
        if self.phase is not Phase.RUNNING:
            return []  # the next event of the main lane, or the outcome, takes it up
        return self._ask(event)

    def _on_timer(self, timer: Timer) -> list[Instruction]:
        if self.phase is not Phase.RUNNING:
            return []
        if timer is Timer.GRACE:
            return self._destroy()
        if self._grace_until is not None:
            return []  # it is being killed already
        self._timed_out = True
        self._grace_until = _FOREVER
        return [Terminate(), *self._arm(self._spec.grace_ms)]

    def _ask(self, kill: KillRequested) -> list[Instruction]:
        """SIGTERM and its grace; a later, shorter grace only moves the end nearer."""
        grace_ms = self._spec.grace_ms if kill.grace_ms is None else kill.grace_ms
        until, asked = kill.now_ms + grace_ms, self._grace_until is not None
        if self._grace_until is not None and until >= self._grace_until:
            return []
        self._grace_until = until
        return [*([] if asked else [Terminate()]), *self._arm(grace_ms)]

    def _arm(self, grace_ms: int) -> list[Instruction]:
        if grace_ms == 0:
            return self._destroy()
        return [ArmTimer(timer=Timer.GRACE, after_ms=grace_ms)]

    def _destroy(self) -> list[Instruction]:
        if self._destroying:
            return []
        self._destroying = True
        return [Destroy()]

    # --- the main lane ----------------------------------------------------------------------------------

    def _run(self) -> list[Instruction]:
        does: list[Instruction] = [NoteStarted()]
        if self._spec.timeout_ms is not None:
            left_ms = max(0, self._spec.timeout_ms - self._ran_ms)
            does.append(ArmTimer(timer=Timer.TIMEOUT, after_ms=left_ms))
        if self._kill is not None:
            does.extend(self._ask(self._kill))
        return [*does, *self._go(Phase.RUNNING, Wait())]

    def _end(self, end: Exit) -> list[Instruction]:
        """Say in the durable exit itself why it ended, so that a successor comes to the same outcome."""
        if self._kill is not None:
            end = msgspec.structs.replace(end, kind=ExitKind.KILLED)
        elif self._timed_out:
            end = msgspec.structs.replace(end, kind=ExitKind.TIMEOUT)
        self._exit = end
        return self._go(Phase.RECORDING, WriteExit(exit=end))

    def _killed_early(self) -> list[Instruction]:
        return [] if self._kill is None else self._finish(self._killed(None))

    def _killed(self, end: Exit | None) -> Finish:
        reason = self._kill.reason if self._kill is not None else ""
        return Finish(kind=EventKind.KILLED, reason=_cut(reason), exit=end)

    def _outcome(self, now_ms: int, chance: float) -> Finish:
        end = self._exit
        if end is None or end.kind is ExitKind.KILLED:
            return self._killed(end)
        if succeeded(end):
            return Finish(kind=EventKind.SUCCEEDED, reason="", exit=end)
        if not may_retry(end) or self._retries >= self._spec.max_retries:
            reason = explain(end, self._spec)
            return Finish(kind=EventKind.FAILED, reason=reason, exit=end, dead=may_retry(end))
        if self._kill is not None:
            return self._killed(end)
        return Finish(
            kind=EventKind.RETRYING,
            reason=explain(end, self._spec),
            exit=end,
            retry_at=now_ms + retry_delay_ms(self._retries + 1, chance),
        )

    def _finish(self, finish: Finish) -> list[Instruction]:
        return self._go(Phase.FINISHING, finish)

    def _go(self, phase: Phase, instruction: MainInstruction) -> list[Instruction]:
        self.phase = phase
        return [instruction]

    def _leave(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise ValueError(
                f"out of turn: the attempt is {self.phase}, not {' or '.join(phases)}"
            )


# A time-out's grace has no end on the clock, so any kill with a deadline is nearer.
_FOREVER: Final = 2**62


def explain(end: Exit, spec: AgentSpec) -> str:  # noqa: PLR0911 - one sentence per kind
    """Return why it did not succeed, in words that an operator can act on."""
    match end.kind:
        case ExitKind.EXITED:
            return f"exit code {end.code}"
        case ExitKind.SIGNALED:
            return f"signal {end.signal} ({_signal_name(end.signal)})"
        case ExitKind.START_FAILED:
            return _cut(_not_started(end.detail, spec))
        case ExitKind.SETUP_FAILED:
            return _cut(f"the sandbox could not be set up: {end.detail}")
        case ExitKind.TIMEOUT:
            return f"timed out after {(spec.timeout_ms or 0) / 1000:g} s"
        case ExitKind.OUT_OF_MEMORY:
            return f"out of memory ({_size(spec.limits.memory_bytes)})"
        case ExitKind.OUTPUT_CAP:
            return f"more output than allowed ({_size(spec.limits.output_bytes)})"
        case ExitKind.KILLED:
            return "killed"
        case ExitKind.UNKNOWN:
            return _cut(f"exit_unknown: {end.detail}" if end.detail else "exit_unknown")
        case _:
            assert_never(end.kind)


def _not_started(detail: str, spec: AgentSpec) -> str:
    command = " ".join(spec.command[:1])
    if not detail or "No such file" in detail:
        return f"command not found: {command}"
    return f"command could not be executed: {command}: {detail}"


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return "unknown"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return (
                f"{count / size:g} {unit}" if count % size == 0 else f"{count / size:.1f} {unit}"
            )
    return f"{count} bytes"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 1]}…"
