"""The dispatch loops: one per spoke, so that a slow or absent one holds up nobody else.

Each is woken by nudges and looks by itself when the next row is to be sent again. What waits while a commit is under
way goes out together with the next one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from hub.control.dispatch import Dispatch
from shared import subjects
from shared.bus import Bus
from shared.errors import UnavailableError

log = structlog.get_logger()

LOOK_S: Final = 1.0


class Dispatchers:
    """The loops of one hub process; `wake` starts a spoke's loop the first time."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        bus: Callable[[], Bus | None],
        seal: Callable[[str], Awaitable[Dispatch]],
    ) -> None:
        self._tasks = tasks
        self._bus = bus
        self._seal = seal
        self._wanted: dict[str, asyncio.Event] = {}
        self._running: list[asyncio.Task[None]] = []
        self._is_stopped = False

    def wake(self, spoke: str) -> None:
        """Have a spoke's outbox looked at now; of no effect after `stop`, when nobody would end a new loop."""
        if self._is_stopped:
            return
        wanted = self._wanted.get(spoke)
        if wanted is None:
            wanted = self._wanted[spoke] = asyncio.Event()
            self._running.append(self._tasks.create_task(self._run(spoke, wanted)))
        wanted.set()

    def stop(self) -> None:
        self._is_stopped = True
        for task in self._running:
            task.cancel()

    async def _run(self, spoke: str, wanted: asyncio.Event) -> None:
        while True:
            wanted.clear()
            wait_s = LOOK_S
            try:
                wait_s = min(LOOK_S, await self._send(spoke))
            except UnavailableError as error:
                log.warning("dispatch_waits", spoke=spoke, error=str(error))
            except (
                Exception
            ):  # a fault of ours at one spoke must not end the hub: kills go out by this way
                log.exception("dispatch_failed", spoke=spoke)
            await wait(wanted, wait_s)

    async def _send(self, spoke: str) -> float:
        """Send what is due; returns in how many seconds something will be."""
        bus = self._bus()
        if bus is None or not bus.is_connected:
            return LOOK_S  # the rows wait; the reconnect wakes us
        sealed = await self._seal(spoke)
        for envelope in sealed.envelopes:
            await bus.publish(subjects.commands(spoke), envelope)
        return LOOK_S if sealed.wait_ms is None else sealed.wait_ms / 1000


async def wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, but not longer than `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
