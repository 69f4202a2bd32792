"""Commands come in: bytes → trusted items → the gate → one script.

A handler on NATS only puts the bytes into a bounded queue. One task takes what waits there, opens each envelope, and
gives everything that verified to the queue in a single call, so that under load a group costs what one costs. What
does not verify proves no sender: it is counted by name, shown in the heartbeat, and never answered. When Valkey is
away the items are dropped: the hub's rows stay open and it sends them again.
"""

import asyncio
import contextlib
from typing import Final

import structlog

from shared.clock import Clock
from shared.envelope import Refusal, RefusalError
from shared.errors import UnavailableError
from shared.messages import Command, Kill, Spawn, Status, Tail
from shared.trust import TrustedCommands, TrustedItem, open_command
from spoke.core.gate import judge
from spoke.core.policy import Policy
from spoke.core.standing import Standing
from spoke.intake.handlers import Handlers
from spoke.queue.entries import VerdictKind
from spoke.queue.queue import Queue
from spoke.report.outbox import Outbox

log = structlog.get_logger()

# Envelopes; beyond this they are dropped, as on a bad network.
_MOST_WAITING: Final = 512
# Items that go to the queue in one call; a script this long keeps others waiting for some milliseconds.
_MOST_ITEMS: Final = 512


class Consumer:
    """`receive` is the handler on NATS, `run` one owned task."""

    def __init__(
        self,
        *,
        queue: Queue,
        standing: Standing,
        policy: Policy,
        outbox: Outbox,
        handlers: Handlers,
        cap: int,
        now: Clock,
    ) -> None:
        self._queue = queue
        self._standing = standing
        self._policy = policy
        self._outbox = outbox
        self._handlers = handlers
        self._cap = cap
        self._now = now
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)
        self.dropped = 0

    async def receive(self, _subject: str, data: bytes) -> None:
        """Keep an envelope for `run`; dropped when too many wait."""
        try:
            self._waiting.put_nowait(data)
        except asyncio.QueueFull:
            self.dropped += 1
            log.warning("envelope_dropped", waiting=_MOST_WAITING, dropped=self.dropped)

    async def run(self) -> None:
        """Take in, for ever. Raises FencedError."""
        while True:
            opened = self._open(await self._waiting.get())
            items = list(opened.items) if opened else []
            evt_ack = self._acknowledged_by(opened)
            while not self._waiting.empty() and len(items) < _MOST_ITEMS:
                opened = self._open(self._waiting.get_nowait())
                items.extend(opened.items if opened else ())
                evt_ack = max(evt_ack, self._acknowledged_by(opened))
            await self._try_to_take_in(items)
            with contextlib.suppress(UnavailableError):
                # The next envelope, answer or heartbeat says it again.
                await self._outbox.acknowledge(evt_ack)

    async def _try_to_take_in(self, items: list[TrustedItem[Command]]) -> None:
        try:
            await self._take_in(items)
        except UnavailableError as error:
            self.dropped += len(items)
            log.warning("items_dropped", items=len(items), error=str(error))

    def _open(self, data: bytes) -> TrustedCommands | None:
        try:
            opened = open_command(
                data, self._standing.trust, self._now(), self._standing.newest_ms
            )
        except RefusalError as error:
            self._standing.refuse(error.refusal)
            log.warning("command_refused", refusal=error.refusal, detail=str(error))
            return None
        if not isinstance(opened.items[0].item, Kill):
            self._standing.raise_newest(opened.header.iat)
        return opened

    def _acknowledged_by(self, opened: TrustedCommands | None) -> int:
        """A kill is valid in any incarnation, but its acknowledgement counts events of its own one."""
        if opened is None or opened.header.inc != self._standing.incarnation:
            return 0
        return opened.header.evt_ack

    async def _take_in(self, items: list[TrustedItem[Command]]) -> None:
        for trusted in items:
            if isinstance(trusted.item, Status | Tail):
                self._handlers.answer(trusted.item)
        durable = [each for each in items if not isinstance(each.item, Status | Tail)]
        if not durable:
            return
        # Kills need no room and must not fail for the want of it, so they go by themselves.
        kills = [each for each in durable if isinstance(each.item, Kill)]
        for group in (kills, [each for each in durable if not isinstance(each.item, Kill)]):
            if group:
                await self._commit(group)

    async def _commit(self, items: list[TrustedItem[Command]]) -> None:
        verdicts = await self._queue.intake(
            items,
            refused=self._refused(items),
            full=await self._queue.almost_full(),
            cap=self._cap,
            now_ms=self._now(),
        )
        for trusted, verdict in zip(items, verdicts, strict=True):
            self._handlers.apply(trusted.item, verdict)
        only_more = all(verdict.kind is VerdictKind.ACCEPTED for verdict in verdicts) and all(
            isinstance(each.item, Spawn) for each in items
        )
        (self._handlers.accepted if only_more else self._handlers.wake)()

    def _refused(self, items: list[TrustedItem[Command]]) -> dict[str, tuple[Refusal, str]]:
        spawns = (each.item for each in items if isinstance(each.item, Spawn))
        judged = ((spawn.id, judge(spawn.spec, self._policy)) for spawn in spawns)
        return {command: no for command, no in judged if no is not None}
