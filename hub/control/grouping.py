"""Groups spawn orders: whoever spawns while a group is being committed is in the next one. No timer.

Alone, an order is committed at once; under load one commit, one fsync and a handful of statements serve hundreds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from hub.control.spawn import Spawned
from hub.core.admission import Order
from shared.errors import FelloeError, OverloadedError, UnavailableError

# More orders in one transaction would keep everybody else from the writer, intake first of all.
MAX_ORDERS: Final = 1_000
MAX_WAITING: Final = 50_000

Results = list[Spawned | FelloeError]


class SpawnGroups:
    """Waits for nothing when idle; its task ends when nobody waits any more."""

    def __init__(
        self, commit: Callable[[Sequence[Order]], Awaitable[Results]], tasks: asyncio.TaskGroup
    ) -> None:
        self._commit = commit
        self._tasks = tasks
        self._waiting: list[tuple[Sequence[Order], asyncio.Future[Results]]] = []
        self._orders = 0
        self._is_running = False
        self._is_stopped = False

    def stop(self) -> None:
        """Take no more; what waits is still stored."""
        self._is_stopped = True

    async def spawn(self, orders: Sequence[Order]) -> Results:
        """Return one result per order; raises what the commit of the whole group raised, or OverloadedError."""
        if self._is_stopped:
            raise UnavailableError("the hub is stopping")
        if self._orders + len(orders) > MAX_WAITING:
            raise OverloadedError("too many agents wait to be stored; try again", retry_after_s=1)
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append((orders, future))
        self._orders += len(orders)
        if not self._is_running:
            self._is_running = True
            self._tasks.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._serve(self._take())
        finally:
            self._is_running = False

    def _take(self) -> list[tuple[Sequence[Order], asyncio.Future[Results]]]:
        """Take the next group, in the order of arrival: one caller at least, and no more orders than are allowed."""
        size = count = 0
        for orders, _ in self._waiting:
            size += len(orders)
            if count and size > MAX_ORDERS:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        self._orders -= sum(len(orders) for orders, _ in group)
        return group

    async def _serve(
        self, group: Sequence[tuple[Sequence[Order], asyncio.Future[Results]]]
    ) -> None:
        try:
            results = iter(await self._commit([order for orders, _ in group for order in orders]))
        except Exception as error:  # noqa: BLE001 - it is every caller's, not ours
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for orders, future in group:
            mine = [next(results) for _ in orders]
            if not future.done():
                future.set_result(mine)
