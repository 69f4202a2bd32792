"""Ageing: the table of base priority and wait."""

import pytest

from hub.core.ageing import effective_priority

MINUTE = 60_000


@pytest.mark.parametrize(
    ("priority", "waited_min", "effective"),
    [
        (1, 0, 1), (1, 9, 1), (1, 10, 2), (1, 19, 2), (1, 20, 3), (1, 30, 4), (1, 31, 4), (1, 100_000, 4),
        (5, 0, 5), (5, 10, 6), (5, 30, 8), (5, 600, 8),
        (7, 20, 9), (7, 30, 9), (8, 10, 9), (8, 60, 9), (9, 0, 9), (9, 600, 9),
        (10, 0, 10), (10, 600, 10),
    ],
)  # fmt: skip
def test_waiting_raises_by_one_each_ten_minutes_at_most_three_and_never_to_ten(
    priority: int, waited_min: int, effective: int
):
    assert effective_priority(priority, waited_min * MINUTE) == effective


def test_the_step_is_exact_to_the_millisecond():
    assert effective_priority(5, 10 * MINUTE - 1) == 5
    assert effective_priority(5, 10 * MINUTE) == 6


def test_a_clock_that_went_back_lowers_nothing():
    assert effective_priority(5, -100 * MINUTE) == 5
