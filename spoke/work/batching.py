"""Grouping without waiting: send when nothing is in flight, else group.

A round trip to Valkey and a durable write cost the same for one item as for a hundred. So whoever wants one hands its
item in and waits; the batcher sends the first at once, and what comes meanwhile goes together with the next. Idle, an
item waits for nobody; under load the groups grow by themselves. There is no timer and nothing to tune.

When the other side is away the same group is sent again until it is back: every call behind a batcher is idempotent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import structlog

from shared.errors import UnavailableError

log = structlog.get_logger()

_T = TypeVar("_T")
_R = TypeVar("_R")

# A script works through a group in one go; this many keep Valkey's other callers waiting for a few ms at most.
_MOST: Final = 256
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0


class Batcher(Generic[_T, _R]):
    """`submit` from anywhere in the loop, `run` in one owned task. As many items wait as there are callers."""

    def __init__(self, what: str, send: Callable[[Sequence[_T]], Awaitable[Sequence[_R]]]) -> None:
        """`send` returns one result per item, in their order; `what` names it in the log."""
        self._what = what
        self._send = send
        self._waiting: list[tuple[_T, asyncio.Future[_R]]] = []
        self._wake = asyncio.Event()

    def submit(self, item: _T) -> "asyncio.Future[_R]":
        """Return the future result; cancelling it does not take the item back."""
        future: asyncio.Future[_R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._wake.set()
        return future

    async def run(self) -> None:
        """Send, for ever. Ends by cancellation, or by any error of `send` but UnavailableError."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                group, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                results = await self._deliver([item for item, _ in group])
                for (_, future), result in zip(group, results, strict=True):
                    if not future.done():
                        future.set_result(result)

    async def _deliver(self, items: list[_T]) -> Sequence[_R]:
        return await until_there(self._what, lambda: self._send(items))


async def until_there(what: str, call: Callable[[], Awaitable[_T]]) -> _T:
    """Return what `call` gives, calling again for as long as the other side is away; `call` is idempotent."""
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return await call()
        except UnavailableError as error:
            log.warning("waiting", what=what, error=str(error))
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
