"""Any order of kills, timers and answers: what an attempt promises holds."""

from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.messages import EventKind, Exit, ExitKind
from spoke.core.attempt import (
    Adopted,
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
    IntentWritten,
    KillRequested,
    NeverRan,
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
from tests.helpers.hub_peer import agent_spec

EXITS = st.sampled_from(
    [
        Exit(kind=ExitKind.EXITED, code=0),
        Exit(kind=ExitKind.EXITED, code=1),
        Exit(kind=ExitKind.SIGNALED, signal=9),
        Exit(kind=ExitKind.OUT_OF_MEMORY),
        Exit(kind=ExitKind.UNKNOWN),
    ]
)
MAIN = (Prepare, WriteHandle, Release, Wait, Discard, WriteExit, Finish, HandBack, CleanUp)


class AnAttempt(RuleBasedStateMachine):
    """The world around the machine: it answers what is at work, and interferes."""

    answers: ClassVar[dict[type, AttemptEvent]] = {
        Prepare: Prepared(),
        WriteHandle: HandleWritten(),
        Release: Released(),
        Discard: Discarded(),
        Finish: Finished(accepted=True),
        HandBack: HandedBack(),
        CleanUp: CleanedUp(),
    }

    @initialize(
        start=st.sampled_from([IntentWritten(), Adopted(ran_ms=10), NeverRan()]),
        killed=st.booleans(),
        retries=st.integers(0, 2),
        timeout=st.booleans(),
    )
    def begin(self, start: AttemptEvent, killed: bool, retries: int, timeout: bool) -> None:
        spec = agent_spec("sh", max_retries=1, timeout_ms=50 if timeout else None, grace_ms=20)
        self.attempt = Attempt(spec, retries)
        self.now = 0
        self.main: Instruction | None = None
        self.timers: set[Timer] = set()
        self.seen: list[Instruction] = []
        self.handle_written = self.adopted = isinstance(start, Adopted)
        self.kill_before_release = self.kill_before_end = killed
        self.destroy_due = self.wrote_exit = False
        if killed:
            self.feed(KillRequested(now_ms=0, grace_ms=None, reason="early"))
        self.feed(start)

    def feed(self, event: AttemptEvent) -> None:
        if isinstance(event, HandleWritten):
            self.handle_written = True
        for instruction in self.attempt.handle(event):
            self.seen.append(instruction)
            if isinstance(instruction, MAIN):
                assert self.main is None, "two main instructions at once"
                self.main = instruction
            if isinstance(instruction, ArmTimer):
                self.timers.add(instruction.timer)
            if isinstance(instruction, Release):
                assert self.handle_written
                assert not self.kill_before_release
            if isinstance(instruction, Destroy):
                self.destroy_due = False

    def answer(self, event: AttemptEvent) -> None:
        self.main = None
        self.feed(event)

    @precondition(lambda self: type(self.main) in self.answers)
    @rule()
    def go_on(self) -> None:
        self.answer(self.answers[type(self.main)])

    @precondition(lambda self: isinstance(self.main, Prepare | Release))
    @rule()
    def fail_to_set_up(self) -> None:
        self.answer(SetupFailed(detail="no"))

    @precondition(lambda self: isinstance(self.main, Wait))
    @rule(exit_=EXITS)
    def exit(self, exit_: Exit) -> None:
        self.answer(Exited(exit=exit_))

    @precondition(lambda self: isinstance(self.main, WriteExit))
    @rule(chance=st.floats(0, 1, exclude_max=True))
    def write_exit(self, chance: float) -> None:
        self.wrote_exit = True
        self.answer(ExitWritten(now_ms=self.now, chance=chance))

    @rule(grace=st.sampled_from([None, 0, 5, 1_000]), passes=st.integers(0, 10))
    def kill(self, grace: int | None, passes: int) -> None:
        self.now += passes
        if not any(isinstance(i, Release | Wait) for i in self.seen):
            self.kill_before_release = True
        if not any(isinstance(i, WriteExit | Finish | HandBack) for i in self.seen):
            self.kill_before_end = True
        self.feed(KillRequested(now_ms=self.now, grace_ms=grace, reason="stop"))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def fire(self, data: st.DataObject) -> None:
        timer = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers.discard(timer)
        waits = isinstance(self.main, Wait)
        destroyed = any(isinstance(i, Destroy) for i in self.seen)
        self.destroy_due = waits and timer is Timer.GRACE and not destroyed
        self.feed(TimerFired(timer=timer))
        assert not self.destroy_due, "the grace is over and it was not destroyed"

    @invariant()
    def has_one_outcome_and_never_two(self) -> None:
        finishes = [i for i in getattr(self, "seen", []) if isinstance(i, Finish)]
        assert len(finishes) <= 1
        if finishes and self.kill_before_end:
            assert finishes[0].kind is EventKind.KILLED
        if finishes:
            assert (finishes[0].kind is EventKind.RETRYING) == (finishes[0].retry_at is not None)

    @invariant()
    def asks_once_and_destroys_once(self) -> None:
        seen = getattr(self, "seen", [])
        assert sum(isinstance(i, Terminate) for i in seen) <= 1
        assert sum(isinstance(i, Destroy) for i in seen) <= 1

    def teardown(self) -> None:
        """Left alone, it always comes to an end, with an outcome or handed back."""
        if not hasattr(self, "attempt"):
            return
        while self.main is not None:
            if isinstance(self.main, Wait):
                self.exit(Exit(kind=ExitKind.EXITED, code=0))
            elif isinstance(self.main, WriteExit):
                self.write_exit(0.5)
            else:
                self.go_on()
            self.has_one_outcome_and_never_two()
        assert any(isinstance(i, Finish | HandBack) for i in self.seen)
        assert isinstance(self.seen[-1], CleanUp | HandBack)
        assert sum(isinstance(i, CleanUp) for i in self.seen) == 1


AnAttempt.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestAnAttempt = AnAttempt.TestCase
