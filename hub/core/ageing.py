"""Priority with ageing, the same at hub and spoke: +1 for each ten minutes of waiting, at most +3, never reaching 10.

Ageing orders what waits and is never a reason to preempt.
"""

from typing import Final

AGEING_STEP_MS: Final = 600_000
AGEING_MOST: Final = 3
CRITICAL: Final = 10


def effective_priority(priority: int, waited_ms: int) -> int:
    """Return the priority that orders the queue, for a base priority 1-10 and a wait in milliseconds."""
    if priority >= CRITICAL:
        return CRITICAL
    return min(CRITICAL - 1, priority + min(AGEING_MOST, max(0, waited_ms) // AGEING_STEP_MS))
