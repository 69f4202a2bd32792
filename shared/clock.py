"""The only place that reads a clock. Everything else takes `now_ms` as an argument."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

# Unix time in milliseconds. Passed in, so that tests need neither sleep nor patch.
Clock = Callable[[], int]


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def boot_ms() -> int:
    """Return the milliseconds since boot, sleep included where the system counts it: for leases beside a sandbox."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def to_datetime(ms: int) -> datetime:
    """Return the aware UTC datetime of a Unix time in milliseconds: exact, so without floats."""
    return _EPOCH + timedelta(milliseconds=ms)


def to_iso(ms: int | None) -> str | None:
    """Return RFC 3339 text with milliseconds and `Z`, or None for None."""
    if ms is None:
        return None
    return to_datetime(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
