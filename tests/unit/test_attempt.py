"""Each race in the life of an attempt, in a few lines."""

import pytest

from shared.messages import EventKind, Exit, ExitKind, Limits
from spoke.core.attempt import (
    Adopted,
    ArmTimer,
    Attempt,
    CleanedUp,
    CleanUp,
    Denied,
    Destroy,
    Discard,
    Discarded,
    Exited,
    ExitFound,
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
    explain,
)
from tests.helpers.hub_peer import agent_spec

OK = Exit(kind=ExitKind.EXITED, code=0)
THREE = Exit(kind=ExitKind.EXITED, code=3)
KILL = KillRequested(now_ms=1_000, grace_ms=None, reason="enough")


def running(attempt: Attempt) -> Attempt:
    for event in (IntentWritten(), Prepared(), HandleWritten(), Released()):
        attempt.handle(event)
    return attempt


def end(attempt: Attempt, exit_: Exit, *, chance: float = 0.5) -> Finish:
    attempt.handle(Exited(exit=exit_))
    return only_finish(attempt.handle(ExitWritten(now_ms=5_000, chance=chance)))


def only_finish(does: list[Instruction]) -> Finish:
    assert len(does) == 1
    assert isinstance(does[0], Finish)
    return does[0]


def new(**spec: object) -> Attempt:
    return Attempt(agent_spec("sh", **spec), retries=0)


def test_an_attempt_that_succeeds_takes_every_step_once() -> None:
    attempt = new(timeout_ms=7_000)
    assert attempt.handle(IntentWritten()) == [Prepare()]
    assert attempt.handle(Prepared()) == [WriteHandle()]
    assert attempt.handle(HandleWritten()) == [Release()]
    timer = ArmTimer(timer=Timer.TIMEOUT, after_ms=7_000)
    assert attempt.handle(Released()) == [NoteStarted(), timer, Wait()]
    assert attempt.handle(Exited(exit=OK)) == [WriteExit(exit=OK)]
    finish = Finish(kind=EventKind.SUCCEEDED, reason="", exit=OK)
    assert attempt.handle(ExitWritten(now_ms=0, chance=0)) == [finish]
    assert attempt.handle(Finished(accepted=True)) == [CleanUp()]
    assert attempt.handle(CleanedUp()) == []
    assert attempt.phase is Phase.DONE


def test_a_failure_is_tried_again_after_a_jittered_delay() -> None:
    finish = end(running(new(max_retries=3)), THREE, chance=0.5)
    assert (finish.kind, finish.reason, finish.retry_at) == (
        EventKind.RETRYING,
        "exit code 3",
        5_500,
    )


def test_used_up_retries_end_as_failed() -> None:
    attempt = Attempt(agent_spec("sh", max_retries=3), retries=3)
    finish = end(running(attempt), THREE)
    assert (finish.kind, finish.reason, finish.exit) == (EventKind.FAILED, "exit code 3", THREE)
    assert finish.dead


@pytest.mark.parametrize(
    "kind", [ExitKind.START_FAILED, ExitKind.OUTPUT_CAP, ExitKind.UNKNOWN], ids=str
)
def test_what_would_only_fail_again_fails_at_once(kind: ExitKind) -> None:
    finish = end(running(new(max_retries=3)), Exit(kind=kind))
    assert finish.kind is EventKind.FAILED
    assert not finish.dead


def test_a_setup_that_failed_is_ours_and_is_tried_again() -> None:
    attempt = new(max_retries=1)
    attempt.handle(IntentWritten())
    broken = Exit(kind=ExitKind.SETUP_FAILED, detail="no space")
    assert attempt.handle(SetupFailed(detail="no space")) == [WriteExit(exit=broken)]
    finish = only_finish(attempt.handle(ExitWritten(now_ms=0, chance=0)))
    assert finish.kind is EventKind.RETRYING
    assert finish.reason == "the sandbox could not be set up: no space"


def test_a_kill_before_anything_was_made_ends_it_at_once() -> None:
    attempt = new()
    assert attempt.handle(KILL) == []
    finish = only_finish(attempt.handle(IntentWritten()))
    assert (finish.kind, finish.reason, finish.exit) == (EventKind.KILLED, "enough", None)


@pytest.mark.parametrize("before", [1, 2], ids=["while preparing", "while its handle is written"])
def test_a_kill_before_the_release_means_that_it_never_runs(before: int) -> None:
    attempt = new()
    steps = [IntentWritten(), Prepared(), HandleWritten()]
    for event in steps[:before]:
        attempt.handle(event)
    assert attempt.handle(KILL) == []
    for event in steps[before:-1]:
        attempt.handle(event)
    assert attempt.handle(steps[-1]) == [Discard()]
    assert only_finish(attempt.handle(Discarded())).kind is EventKind.KILLED


def test_a_kill_while_it_is_released_asks_it_to_end_at_once() -> None:
    attempt = new(grace_ms=2_000)
    for event in (IntentWritten(), Prepared(), HandleWritten()):
        attempt.handle(event)
    assert attempt.handle(KILL) == []
    grace = ArmTimer(timer=Timer.GRACE, after_ms=2_000)
    assert attempt.handle(Released()) == [NoteStarted(), Terminate(), grace, Wait()]


def test_a_killed_agent_is_asked_then_made_to_end() -> None:
    attempt = running(new(grace_ms=2_000))
    assert attempt.handle(KILL) == [Terminate(), ArmTimer(timer=Timer.GRACE, after_ms=2_000)]
    assert attempt.handle(TimerFired(timer=Timer.GRACE)) == [Destroy()]
    finish = end(attempt, Exit(kind=ExitKind.SIGNALED, signal=9))
    assert (finish.kind, finish.reason) == (EventKind.KILLED, "enough")
    assert finish.exit == Exit(kind=ExitKind.KILLED, signal=9)


def test_a_killed_agent_is_killed_whatever_code_it_leaves_with() -> None:
    attempt = running(new(max_retries=3))
    attempt.handle(KILL)
    finish = end(attempt, OK)
    assert finish.kind is EventKind.KILLED
    assert finish.exit == Exit(kind=ExitKind.KILLED, code=0)


def test_asking_again_does_not_prolong_the_grace() -> None:
    attempt = running(new(grace_ms=10_000))
    attempt.handle(KILL)
    assert attempt.handle(KillRequested(now_ms=9_000, grace_ms=None, reason="again")) == []


def test_asking_again_with_less_grace_shortens_it() -> None:
    attempt = running(new(grace_ms=10_000))
    attempt.handle(KILL)
    sooner = attempt.handle(KillRequested(now_ms=2_000, grace_ms=500, reason="now"))
    assert sooner == [ArmTimer(timer=Timer.GRACE, after_ms=500)]
    assert attempt.handle(KillRequested(now_ms=2_100, grace_ms=0, reason="now!")) == [Destroy()]
    assert attempt.handle(TimerFired(timer=Timer.GRACE)) == []


def test_a_kill_without_grace_asks_and_destroys() -> None:
    kill = KillRequested(now_ms=0, grace_ms=0, reason="")
    assert running(new()).handle(kill) == [Terminate(), Destroy()]


def test_a_timed_out_agent_takes_the_same_path() -> None:
    attempt = running(new(timeout_ms=5_000, grace_ms=100))
    asked = attempt.handle(TimerFired(timer=Timer.TIMEOUT))
    assert asked == [Terminate(), ArmTimer(timer=Timer.GRACE, after_ms=100)]
    assert attempt.handle(TimerFired(timer=Timer.GRACE)) == [Destroy()]
    finish = end(attempt, OK)
    assert (finish.kind, finish.reason) == (EventKind.FAILED, "timed out after 5 s")


def test_a_kill_during_the_grace_of_a_timeout_takes_over() -> None:
    attempt = running(new(timeout_ms=5_000, grace_ms=60_000, max_retries=3))
    attempt.handle(TimerFired(timer=Timer.TIMEOUT))
    sooner = attempt.handle(KillRequested(now_ms=0, grace_ms=50, reason="stop"))
    assert sooner == [ArmTimer(timer=Timer.GRACE, after_ms=50)]
    assert end(attempt, THREE).kind is EventKind.KILLED


def test_a_timeout_during_the_grace_of_a_kill_changes_nothing() -> None:
    attempt = running(new(timeout_ms=5_000))
    attempt.handle(KILL)
    assert attempt.handle(TimerFired(timer=Timer.TIMEOUT)) == []


def test_a_kill_after_the_end_leaves_a_success() -> None:
    attempt = running(new())
    attempt.handle(Exited(exit=OK))
    assert attempt.handle(KILL) == []
    finish = only_finish(attempt.handle(ExitWritten(now_ms=0, chance=0)))
    assert finish.kind is EventKind.SUCCEEDED


def test_a_kill_after_the_end_stops_a_retry() -> None:
    attempt = running(new(max_retries=3))
    attempt.handle(Exited(exit=THREE))
    attempt.handle(KILL)
    finish = only_finish(attempt.handle(ExitWritten(now_ms=0, chance=0)))
    assert (finish.kind, finish.exit) == (EventKind.KILLED, THREE)


def test_a_policy_that_changed_while_it_waited_fails_it_without_running() -> None:
    finish = only_finish(new().handle(Denied(detail="no bubblewrap")))
    assert (finish.kind, finish.reason) == (EventKind.FAILED, "policy: no bubblewrap")


def test_an_adopted_agent_is_released_again_and_has_only_the_rest_of_its_time() -> None:
    attempt = new(timeout_ms=5_000)
    assert attempt.handle(Adopted(ran_ms=4_000)) == [Release()]
    rest = ArmTimer(timer=Timer.TIMEOUT, after_ms=1_000)
    assert attempt.handle(Released()) == [NoteStarted(), rest, Wait()]


def test_an_adopted_agent_whose_kill_is_known_is_not_released() -> None:
    attempt = new(grace_ms=300)
    attempt.handle(KILL)
    grace = ArmTimer(timer=Timer.GRACE, after_ms=300)
    assert attempt.handle(Adopted(ran_ms=0)) == [NoteStarted(), Terminate(), grace, Wait()]


def test_an_exit_that_was_found_after_a_restart_is_written_down_first() -> None:
    attempt = new()
    assert attempt.handle(Exited(exit=OK)) == [WriteExit(exit=OK)]


def test_a_written_exit_gives_a_successor_the_same_outcome() -> None:
    killed = Exit(kind=ExitKind.KILLED, signal=9)
    found = new(max_retries=3).handle(ExitFound(exit=killed, now_ms=0, chance=0))
    assert only_finish(found).kind is EventKind.KILLED


def test_an_attempt_that_never_ran_is_handed_back() -> None:
    attempt = new()
    assert attempt.handle(NeverRan()) == [CleanUp()]
    assert attempt.handle(CleanedUp()) == [HandBack()]
    assert attempt.handle(HandedBack()) == []
    assert attempt.phase is Phase.DONE


def test_an_attempt_that_never_ran_and_is_to_be_killed_ends_here() -> None:
    attempt = new()
    attempt.handle(KILL)
    assert only_finish(attempt.handle(NeverRan())).kind is EventKind.KILLED


def test_an_answer_that_nothing_asked_for_is_a_bug() -> None:
    with pytest.raises(ValueError, match="out of turn"):
        new().handle(Released())


@pytest.mark.parametrize(
    ("exit_", "reason"),
    [
        (THREE, "exit code 3"),
        (Exit(kind=ExitKind.SIGNALED, signal=11), "signal 11 (SIGSEGV)"),
        (Exit(kind=ExitKind.START_FAILED), "command not found: sh"),
        (
            Exit(kind=ExitKind.START_FAILED, detail="Permission denied"),
            "command could not be executed: sh: Permission denied",
        ),
        (Exit(kind=ExitKind.TIMEOUT), "timed out after 1.5 s"),
        (Exit(kind=ExitKind.OUT_OF_MEMORY), "out of memory (512 MiB)"),
        (Exit(kind=ExitKind.OUTPUT_CAP), "more output than allowed (1.5 KiB)"),
        (Exit(kind=ExitKind.UNKNOWN), "exit_unknown"),
        (Exit(kind=ExitKind.KILLED), "killed"),
    ],
    ids=lambda value: value.kind if isinstance(value, Exit) else "",
)
def test_every_end_says_why(exit_: Exit, reason: str) -> None:
    spec = agent_spec("sh", timeout_ms=1_500, limits=Limits(output_bytes=1_536))
    assert explain(exit_, spec) == reason
