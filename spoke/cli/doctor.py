"""What this host can enforce and what can be reached, one finding per line. Changes nothing.

Each check stands alone, so that one that fails hides none of the others; what is merely degraded, and allowed, is
told but does not count as a failure.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
from rich.console import Console
from rich.table import Table

from shared import subjects
from shared.bus import Bus
from shared.errors import FelloeError
from spoke.config import SpokeSettings
from spoke.daemon import identity_of
from spoke.queue.queue import Queue
from spoke.spawners.host import look
from spoke.work.equipment import equip

_REACH_S: Final = 3.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what was looked at, whether it will do, and what was seen."""

    check: str
    ok: bool
    detail: str
    lacks: tuple[str, ...] = ()


async def examine(settings: SpokeSettings) -> list[Finding]:
    """Return all findings; takes seconds at most."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = [_keys(settings), _state(settings), _sandboxes(settings)]
    found.append(await _reach("queue", lambda: _queue(settings)))
    found.append(await _reach("nats", lambda: _nats(settings)))
    return found


def show(found: list[Finding], *, as_json: bool) -> None:
    """Print the findings as a table, or as one JSON document."""
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    table = Table("check", "")
    table.add_column("what was seen", overflow="fold")
    for finding in found:
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
        table.add_row(finding.check, mark, "\n".join((finding.detail, *finding.lacks)))
    Console().print(table)


def _keys(settings: SpokeSettings) -> Finding:
    try:
        identity = identity_of(settings)
    except FelloeError as error:
        return Finding(check="keys", ok=False, detail=str(error))
    return Finding(check="keys", ok=True, detail=f"this spoke's key is {identity.signer.key_id}")


def _state(settings: SpokeSettings) -> Finding:
    folder = settings.spoke.state
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding(check="state", ok=False, detail=f"{folder} cannot be written")
    return Finding(check="state", ok=True, detail=str(folder))


def _sandboxes(settings: SpokeSettings) -> Finding:
    try:
        equipment = equip(settings.sandbox, look())
    except FelloeError as error:
        return Finding(check="sandboxes", ok=False, detail=str(error))
    kinds = ", ".join(equipment.kinds)
    return Finding(check="sandboxes", ok=True, detail=kinds, lacks=equipment.lacks)


async def _reach(check: str, call: Callable[[], Awaitable[str]]) -> Finding:
    try:
        async with asyncio.timeout(_REACH_S):
            return Finding(check=check, ok=True, detail=await call())
    except FelloeError as error:
        return Finding(check=check, ok=False, detail=str(error))
    except TimeoutError:
        return Finding(check=check, ok=False, detail=f"no answer within {_REACH_S:g} s")


async def _queue(settings: SpokeSettings) -> str:
    group = settings.queue
    queue = await Queue.open(group.url, settings.spoke.name, allow_volatile=group.allow_volatile)
    await queue.close()
    return "answers, and its settings will do"


async def _nats(settings: SpokeSettings) -> str:
    bus = await Bus.connect(
        settings.nats.url,
        name="felloe-spoke doctor",
        user=settings.nats.user,
        password=settings.nats.password,
        inbox_prefix=subjects.inbox(settings.spoke.name),
    )
    await bus.close()
    return "lets us in"
