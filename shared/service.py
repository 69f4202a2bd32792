"""The life of a daemon: uvloop, signals, and a stop that is asked for once and insisted on twice.

The first SIGTERM or SIGINT sets `stop`; the daemon then winds down by itself. A second one ends the process at once.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from shared.errors import FelloeError

log = structlog.get_logger()


def run(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a daemon until it ends or is stopped, and return its exit status (125: Felloe itself failed)."""

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, stop, number)
        await main(stop)

    try:
        # The hub shares the GIL between its loop and its writer thread: hand over after 0.5 ms, not 5.
        sys.setswitchinterval(0.0005)
        uvloop.run(supervised())
    except FelloeError as error:
        log.error("stopped", reason=str(error))
        return 125
    except BaseExceptionGroup as group:
        matched, rest = group.split(FelloeError)
        if rest is not None:
            raise
        log.error("stopped", reason="; ".join(_sentences(matched)))
        return 125
    return 0


def _on_signal(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        os._exit(128 + number)
    log.info("stopping", signal=number.name)
    stop.set()


def _sentences(group: BaseExceptionGroup[FelloeError] | None) -> list[str]:
    """What each error in the group says, however deep it lies."""
    if group is None:
        return []
    nested = [
        _sentences(e) if isinstance(e, BaseExceptionGroup) else [str(e)] for e in group.exceptions
    ]
    return [sentence for sentences in nested for sentence in sentences]
