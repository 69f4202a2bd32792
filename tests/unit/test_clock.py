"""Time as text and back, without a float on the way."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import clock
from shared.messages import Ms

LAST_MS = 253_402_300_799_999


def test_a_time_is_shown_in_utc_with_milliseconds():
    assert clock.to_iso(1_795_000_000_007) == "2026-11-18T11:06:40.007Z"
    assert clock.to_iso(0) == "1970-01-01T00:00:00.000Z"
    assert clock.to_iso(None) is None


@given(st.integers(min_value=0, max_value=LAST_MS))
def test_no_time_that_may_arrive_loses_a_millisecond_or_breaks_the_text(ms: int):
    shown = clock.to_datetime(ms)
    assert shown.microsecond == ms % 1000 * 1000
    assert clock.to_iso(ms) is not None


def test_a_time_past_what_a_date_can_show_is_refused_on_the_wire():
    assert clock.to_iso(msgspec.convert(LAST_MS, Ms)) == "9999-12-31T23:59:59.999Z"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(LAST_MS + 1, Ms)


def test_the_clocks_tick():
    assert clock.now_ms() > 1_700_000_000_000
    assert 0 < clock.boot_ms() <= clock.boot_ms()
