"""Fan-out: who watches is woken after a commit, and then reads the store.

Nothing is pushed, so nothing can be lost or be out of order here: a watcher that was slow reads more at once. Clear
the event *before* reading, else what is committed between the two is seen late.
"""

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager

ANY = ""


class Fanout:
    """The events of this process's watchers, by agent (`ANY` for those who watch everything)."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def wake(self, agents: Iterable[str]) -> None:
        """Wake whoever watches one of these agents, or everything."""
        if not self._watchers:
            return
        for agent in agents:
            for event in self._watchers.get(agent, ()):
                event.set()
        for event in self._watchers.get(ANY, ()):
            event.set()

    def wake_all(self) -> None:
        """Wake everybody: something is over (a shutdown), or was missed (a reconnect)."""
        for events in self._watchers.values():
            for event in events:
                event.set()

    @contextmanager
    def watching(self, agent: str | None) -> Generator[asyncio.Event]:
        """Lend an event that is set whenever something of `agent` (None: of any agent) was committed."""
        key = agent or ANY
        event = asyncio.Event()
        self._watchers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            self._watchers[key].discard(event)
            if not self._watchers[key]:
                del self._watchers[key]
