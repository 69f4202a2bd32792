"""Groups spawn orders: whoever spawns while a group is being committed is in the next one. No timer.

Alone, an order is committed at once; under load one commit, one fsync and a handful of statements serve hundreds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hub.control.spawn import Spawned
from hub.core.admission import Order
from shared.errors import FelloeError

MAX_CALLERS = 500

Results = list[Spawned | FelloeError]


class SpawnGroups:
    """Waits for nothing when idle; its task ends when nobody waits any more."""

    def __init__(
        self, commit: Callable[[Sequence[Order]], Awaitable[Results]], tasks: asyncio.TaskGroup
    ) -> None:
        self._commit = commit
        self._tasks = tasks
        self._waiting: list[tuple[Sequence[Order], asyncio.Future[Results]]] = []
        self._is_running = False

    async def spawn(self, orders: Sequence[Order]) -> Results:
        """Return one result per order; raises what the commit of the whole group raised."""
        future: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append((orders, future))
        if not self._is_running:
            self._is_running = True
            self._tasks.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                group = self._waiting[:MAX_CALLERS]
                del self._waiting[:MAX_CALLERS]
                await self._serve(group)
        finally:
            self._is_running = False

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
