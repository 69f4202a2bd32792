"""What follows from a command, once the queue has decided about it.

The queue's verdict says whether something is alive that must be ended now; wanted states are mirrored for the
heartbeat; queries never reach the queue. Everything here is idempotent, since commands come at least once.
"""

from collections.abc import Callable

import structlog

from shared.envelope import Refusal
from shared.messages import (
    Command,
    Cordon,
    Drain,
    Kill,
    Pause,
    Resume,
    Status,
    Tail,
)
from spoke.core.standing import Standing
from spoke.queue.entries import Verdict, VerdictKind
from spoke.report.heartbeat import Pulse

log = structlog.get_logger()


class Handlers:
    """Tells the parts of the daemon what they need to know. No I/O, no waiting."""

    def __init__(
        self,
        *,
        kill: Callable[[Kill], None],
        ask: Callable[[Status], None],
        tail: Callable[[Tail], None],
        accepted: Callable[[], None],
        wake: Callable[[], None],
        pulse: Pulse,
        standing: Standing,
    ) -> None:
        """`kill` ends what is alive, `ask` and `tail` answer readers; `accepted` is told that there is only more to
        start, `wake` of any other entries and events."""
        self._kill = kill
        self._ask = ask
        self._tail = tail
        self.accepted = accepted
        self.wake = wake
        self._pulse = pulse
        self._standing = standing

    def answer(self, query: Status | Tail) -> None:
        """Have a reader's question answered on its own subject."""
        if isinstance(query, Status):
            self._ask(query)
        else:
            self._tail(query)

    def apply(self, command: Command, verdict: Verdict) -> None:
        """Act on what the queue has decided."""
        if verdict.kind is VerdictKind.EQUIVOCATION:
            self._standing.refuse(Refusal.EQUIVOCATION)
            log.error("equivocation", cmd=command.id)
        elif verdict.kind is VerdictKind.DUPLICATE:
            self._standing.refuse(Refusal.REPLAYED)
        elif isinstance(command, Kill) and verdict.kill:
            self._kill(command)
        elif verdict.kind is VerdictKind.ACCEPTED and isinstance(
            command, Pause | Resume | Cordon | Drain
        ):
            self._standing.wanted = self._standing.wanted.after(command)
            self._pulse.beat_now()
