"""Running a stack in the foreground: Ctrl-C, SIGTERM and a closed terminal all stop it in order.

The first signal cancels what runs, so every `finally` is passed; a second one while stopping ends us at once, and
the watcher does the rest.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from shared.errors import FelloeError
from shared.telemetry import set_up_logs

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def in_foreground(
    main: Coroutine[Any, Any, int], loop: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """Return the exit status: the coroutine's own, 128 + n after a signal, 125 for a FelloeError."""
    set_up_logs(as_json=False, level="error")
    stopped_by: list[signal.Signals] = []

    async def supervised() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def on_signal(number: signal.Signals) -> None:
            if stopped_by or task is None:
                os._exit(128 + number)
            stopped_by.append(number)
            print("stopping …", file=sys.stderr, flush=True)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
        return await main

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(supervised())
    except asyncio.CancelledError:
        return 128 + stopped_by[0] if stopped_by else 125
    except FelloeError as error:
        print(f"felloe: {error}", file=sys.stderr, flush=True)
        return 125
    except BaseExceptionGroup as group:
        matched, rest = group.split(FelloeError)
        if rest is not None:
            raise
        print(f"felloe: {matched}", file=sys.stderr, flush=True)
        return 125
