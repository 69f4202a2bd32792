"""What is tried again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import Exit, ExitKind
from shared.retry import may_retry, resend_delay_ms, retry_delay_ms, succeeded

AGAIN = {
    ExitKind.EXITED: True,  # with a code other than 0
    ExitKind.SIGNALED: True,
    ExitKind.START_FAILED: False,  # the command does not exist: the author's
    ExitKind.SETUP_FAILED: True,
    ExitKind.TIMEOUT: True,
    ExitKind.OUT_OF_MEMORY: True,
    ExitKind.OUTPUT_CAP: False,
    ExitKind.KILLED: False,
    ExitKind.UNKNOWN: False,  # it may have done its work: only `on_lost: rerun` may repeat that
}


def test_every_kind_of_exit_has_a_row():
    assert set(AGAIN) == set(ExitKind)


@pytest.mark.parametrize("kind", ExitKind)
def test_what_could_end_differently_is_tried_again(kind: ExitKind):
    end = Exit(kind=kind, code=1 if kind is ExitKind.EXITED else None)
    assert may_retry(end) is AGAIN[kind]
    assert not succeeded(end)


def test_code_0_is_success_and_never_tried_again():
    end = Exit(kind=ExitKind.EXITED, code=0)
    assert succeeded(end)
    assert not may_retry(end)


def test_an_exit_without_a_recorded_code_is_no_success():
    assert not succeeded(Exit(kind=ExitKind.EXITED))


def test_the_longest_wait_doubles_up_to_a_minute():
    almost_one = 1 - 2**-53
    longest = [retry_delay_ms(n, almost_one) for n in range(1, 10)]
    assert longest == [999, 1999, 3999, 7999, 15999, 31999, 59999, 59999, 59999]


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_negative_and_never_over_a_minute(retry: int, chance: float):
    assert 0 <= retry_delay_ms(retry, chance) < 60_000


def test_jitter_is_full_so_that_a_crowd_spreads_out():
    assert retry_delay_ms(5, 0.0) == 0
    assert retry_delay_ms(5, 0.5) == 8_000


def test_a_message_without_an_answer_goes_out_again_after_1_2_4_seconds_up_to_a_minute():
    waits = [resend_delay_ms(sent) for sent in range(1, 9)]
    assert waits == [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
    assert resend_delay_ms(0) == 1000
    assert resend_delay_ms(10**9) == 60_000
