"""What follows from a command, once the queue has decided about it.

The queue's verdict says whether something is alive that must be ended now; wanted states are mirrored for the
heartbeat; queries never reach the queue. Everything here is idempotent, since commands come at least once.
"""

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
from spoke.report.outbox import Outbox
from spoke.work.channel import Channel
from spoke.work.loop import Loop, Order

log = structlog.get_logger()


class Handlers:
    """Tells the parts of the daemon what they need to know. No I/O, no waiting."""

    def __init__(
        self, *, loop: Loop, channel: Channel, outbox: Outbox, pulse: Pulse, standing: Standing
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._outbox = outbox
        self._pulse = pulse
        self._standing = standing

    def answer(self, query: Status | Tail) -> None:
        """Have a reader's question answered on its own subject."""
        if isinstance(query, Status):
            self._channel.ask(query)
        else:
            self._channel.tail(query)

    def apply(self, command: Command, verdict: Verdict) -> None:
        """Act on what the queue has decided."""
        if verdict.kind is VerdictKind.EQUIVOCATION:
            self._standing.refuse(Refusal.EQUIVOCATION)
            log.error("equivocation", cmd=command.id)
        elif isinstance(command, Kill) and verdict.kill:
            self._loop.kill(
                Order(
                    agent=command.agent,
                    gen=command.gen,
                    grace_ms=command.grace_ms,
                    reason=command.reason,
                )
            )
        elif verdict.kind is VerdictKind.ACCEPTED and isinstance(
            command, Pause | Resume | Cordon | Drain
        ):
            self._standing.wanted = self._standing.wanted.after(command)
            self._pulse.beat_now()

    def wake(self) -> None:
        """The queue has new entries and new events."""
        self._loop.wake()
        self._outbox.wake()
