"""When a failed attempt is tried again, and when a message is sent again. Pure: chance and time come in.

Retries are of *attempts* and are counted without the first one (`max_retries = 3` is up to four attempts).
What may be retried follows from whose fault the end was: infrastructure and time-outs are tried again, what the
agent's author or a policy caused would only fail again.
"""

from typing import Final

from shared.messages import Exit, ExitKind

RETRY_BASE_MS: Final = 1_000
RETRY_CAP_MS: Final = 60_000

# A start that failed in the set-up is ours; a missing command is the author's.
_RETRIED: Final = frozenset(
    {
        ExitKind.EXITED,
        ExitKind.SIGNALED,
        ExitKind.SETUP_FAILED,
        ExitKind.TIMEOUT,
        ExitKind.OUT_OF_MEMORY,
    }
)


def may_retry(end: Exit) -> bool:
    """Tell whether another attempt could end differently."""
    return end.kind in _RETRIED and not succeeded(end)


def succeeded(end: Exit) -> bool:
    """Tell whether the agent itself said that all is well."""
    return end.kind is ExitKind.EXITED and end.code == 0


def retry_delay_ms(retry: int, chance: float) -> int:
    """Return the wait before retry number `retry` (1 is the first): min(60 s, 1 s · 2^(n-1)), full jitter.

    `chance` is uniform in [0, 1). Full jitter: Brooker, "Exponential Backoff And Jitter", AWS 2015.
    """
    return int(chance * min(RETRY_CAP_MS, RETRY_BASE_MS << min(retry - 1, 16)))


def resend_delay_ms(sent: int) -> int:
    """Return the wait before an outbox row that was sent `sent` times goes out again: 1 s · 2^n, at most 60 s."""
    return min(RETRY_CAP_MS, RETRY_BASE_MS << min(max(sent - 1, 0), 16))
