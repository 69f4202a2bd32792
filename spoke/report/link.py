"""One question to the hub, one verified answer.

Everything the spoke says by itself goes as a request on `.rep`, and is believed to have arrived only when the answer
bears the hub's signature over the hash of what was asked. A silence, a broken answer and an answer of somebody else
are all the same to the caller: *unknown*, ask again. What did not verify is counted by its name.
"""

import asyncio
from typing import Final

import structlog

from shared import subjects
from shared.bus import Bus
from shared.clock import Clock
from shared.envelope import Refusal, RefusalError
from shared.errors import UnavailableError
from shared.trust import Report, TrustedAnswer, open_answer
from spoke.core.standing import Standing

log = structlog.get_logger()

# The hub commits before it answers: milliseconds, on a bad day a second.
ANSWER_S: Final = 5.0


class Link:
    """Shared by outbox and heartbeat."""

    def __init__(self, bus: Bus, standing: Standing, now: Clock) -> None:
        self._bus = bus
        self._standing = standing
        self._now = now
        self._in_flight: set[asyncio.Future[bytes]] = set()

    def drop(self) -> None:
        """The connection is new: answers to what was asked over the old one will not come."""
        for asked in self._in_flight:
            asked.cancel()

    async def ask(
        self, items: list[Report], *, timeout_s: float = ANSWER_S
    ) -> TrustedAnswer | None:
        """Return the hub's answer, or None where there is none that can be believed. Idempotent at the hub."""
        request = self._standing.seal(items, self._now())
        subject = subjects.reports(self._standing.spoke)
        try:
            data = await self._request(subject, request, timeout_s)
            return None if data is None else open_answer(data, request, self._standing.trust)
        except UnavailableError as error:
            log.debug("no_answer", error=str(error))
        except RefusalError as error:
            self.refuse(error.refusal, str(error))
        return None

    async def _request(self, subject: str, request: bytes, timeout_s: float) -> bytes | None:
        """Return the answer, or None where `drop` came first. Raises UnavailableError."""
        asked = asyncio.ensure_future(self._bus.request(subject, request, timeout_s=timeout_s))
        self._in_flight.add(asked)
        try:
            await asyncio.wait((asked,))
        finally:
            self._in_flight.discard(asked)
            asked.cancel()
        return None if asked.cancelled() else asked.result()

    def refuse(self, refusal: Refusal, detail: str) -> None:
        """Count an answer that cannot be believed."""
        self._standing.refuse(refusal)
        log.warning("answer_refused", refusal=refusal, detail=detail)
