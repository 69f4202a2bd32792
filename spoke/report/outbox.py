"""Events stay until the hub has committed them; this sends them until it says so.

The first word after every connect is a hello, asked again until it is answered: the hub alone knows whether it
remembers this journal. It says *go on*, or gives a new incarnation; then the queue drops what has no live attempt and
the hub sends again what is still open there. Only then events go out, in batches, one in flight, which keeps their
order with any number of hubs. An answer carries the highest seq that is committed; without one, the same batch goes
again. So there is nothing to remember here but a number, and that one is in the queue.

`wake` is called by whoever appends events. Nothing is polled while all is quiet.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from shared.clock import Clock
from shared.envelope import Refusal
from shared.errors import UnavailableError
from shared.ids import sha256
from shared.messages import (
    MAX_ITEMS,
    WIRE_VERSION,
    Ack,
    Event,
    Hello,
    Offer,
    Verdict,
    Welcome,
)
from shared.trust import batches
from spoke.core.standing import Standing
from spoke.queue.queue import Queue
from spoke.report.link import Link
from spoke.state.journal import Journal

log = structlog.get_logger()

_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
# A sandbox is ready in about 8 ms; its `running` takes the `queued` before it along.
_TOGETHER_S: Final = 0.015
# So many batches in a row without an answer that can be believed, and the spoke greets anew.
_SILENCES: Final = 3
_encode: Final = msgspec.json.Encoder().encode


class Outbox:
    """Built by the daemon; `run` is its one task."""

    def __init__(
        self,
        *,
        queue: Queue,
        journal: Journal,
        standing: Standing,
        link: Link,
        offer: Offer,
        now: Clock,
    ) -> None:
        self._queue = queue
        self._journal = journal
        self._standing = standing
        self._link = link
        self._offer = offer
        self._now = now
        self._wake = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._quiet = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._unanswered = 0
        self._acknowledged = 0
        self._on_renewal: Callable[[], None] | None = None

    def wake(self) -> None:
        """There are new events."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._quiet.clear()
        self._wake.set()

    def wake_soon(self) -> None:
        """There are new events that others will follow within milliseconds: they go together (ADR 0008)."""
        self._quiet.clear()
        if self._soon is None and not self._wake.is_set():
            self._soon = asyncio.get_running_loop().call_later(_TOGETHER_S, self.wake)

    def greet(self) -> None:
        """The connection is new: what was in flight is unknown, and a hello is due."""
        self._welcomed.clear()
        self._link.drop()
        self.wake()

    def on_renewal(self, call: Callable[[], None]) -> None:
        """Have `call` made after the queue has begun a new incarnation: what runs is to be said again."""
        self._on_renewal = call

    async def welcomed(self) -> None:
        """Return once the hub has answered the hello of this connection."""
        await self._welcomed.wait()

    async def flushed(self) -> None:
        """Return once the hub has everything that was there."""
        await self._quiet.wait()

    async def acknowledge(self, evt_ack: int) -> None:
        """Take the hub's cumulative acknowledgement; of no effect if it is known. Raises UnavailableError.

        Of no effect either is one of events that were never said (the hello settles that): cut to what there is, it
        would drop events that the hub has not.
        """
        incarnation = self._standing.incarnation
        if self._acknowledged < evt_ack <= self._queue.head_seq:
            await self._queue.acknowledge(evt_ack, self._now())
            if self._standing.incarnation == incarnation:  # else it began at 0 again meanwhile
                self._acknowledged = max(self._acknowledged, evt_ack)

    async def run(self) -> None:
        """Say hello and send events, for ever. Ends by cancellation or FencedError."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                moved = await (self._send() if self._welcomed.is_set() else self._hello())
            except UnavailableError as error:
                log.warning("waiting", what="report", error=str(error))
                moved = False
            if moved:
                wait_s = _FIRST_WAIT_S
                continue
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)

    # --- hello ------------------------------------------------------------------------------------

    async def _hello(self) -> bool:
        hello = Hello(
            nonce=sha256(os.urandom(32)),
            incarnation=self._standing.incarnation,
            head_seq=self._queue.head_seq,
            inventory=await self._queue.inventory(),
            versions=(WIRE_VERSION,),
            offer=self._offer,
        )
        answer = await self._link.ask([hello])
        if answer is None:
            return False
        welcome = answer.item
        if not isinstance(welcome, Welcome) or welcome.nonce != hello.nonce:
            self._link.refuse(Refusal.WRONG_ANSWER, "not to this hello")
            return False
        return await self._take(welcome, answer.header.inc, answer.header.evt_ack)

    async def _take(self, welcome: Welcome, incarnation: int, evt_ack: int) -> bool:
        if welcome.verdict is Verdict.NEW_INCARNATION:
            if incarnation <= self._standing.incarnation:
                self._link.refuse(Refusal.WRONG_INCARNATION, f"{incarnation} is not new")
                return False
            await self._renew(incarnation)
        elif incarnation != self._standing.incarnation:
            self._link.refuse(
                Refusal.WRONG_INCARNATION, f"{incarnation}, here {self._standing.incarnation}"
            )
            return False
        else:
            await self.acknowledge(evt_ack)
        log.info("welcomed", verdict=welcome.verdict, incarnation=incarnation, evt_ack=evt_ack)
        self._welcomed.set()
        return True

    async def _renew(self, incarnation: int) -> None:
        """Begin a new incarnation. A crash in between leaves the queue in the old one, so the hub renews again."""
        await self._journal.save(incarnation=incarnation)
        await self._queue.restart_journal(incarnation, self._now())
        self._standing.renew(incarnation)
        self._acknowledged = 0
        if self._on_renewal is not None:
            self._on_renewal()

    # --- events -----------------------------------------------------------------------------------

    async def _send(self) -> bool:
        self._wake.clear()
        events = await self._queue.events(self._acknowledged, MAX_ITEMS)
        if not events:
            self._quiet.set()
            await self._wake.wait()
            return True
        fitting = len(batches([_encode(event) for event in events])[0])
        return await self._deliver(events[:fitting])

    async def _deliver(self, events: list[Event]) -> bool:
        answer = await self._link.ask(list(events))
        if answer is None:
            # One answer may get lost. More silence may mean that the hub knows another incarnation: hello settles it.
            self._unanswered += 1
            if self._unanswered >= _SILENCES:
                self._welcomed.clear()
            return False
        self._unanswered = 0
        if not isinstance(answer.item, Ack) or answer.header.inc != self._standing.incarnation:
            self._link.refuse(Refusal.WRONG_ANSWER, "no acknowledgement of this incarnation")
            return False
        await self.acknowledge(answer.header.evt_ack)
        # A heartbeat's answer or a command may have brought the same acknowledgement before.
        return self._acknowledged >= events[0].seq
