"""Events: what happened to agents, in the order in which the hub committed it; a page of it, or a stream.

A stream is replay and then news from one source, the store: a commit only wakes the reader, so nothing is lost between
the two, and `Last-Event-ID` goes on exactly where a broken stream ended.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Final

from litestar.types import ASGIApp
from msgspec import UNSET
from sqlalchemy import Connection

from hub.api.operation import (
    SSE,
    ApiRequest,
    Segment,
    TheHub,
    operation,
    read_query,
    reply,
    wants_events,
)
from hub.api.stream import Stream, event
from hub.api.views import event_view
from hub.control.hub import Hub
from hub.schemas import EventPage, EventsQuery
from hub.store import agents, events
from hub.store.events import AgentEvent
from shared.errors import BadInputError

_PAGE: Final = 500


@operation(
    "GET",
    "/v1/events",
    query=EventsQuery,
    headers=("Last-Event-ID",),
    gives={200: (EventPage, SSE)},
    problems=(422,),
)
async def list_events(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Read the events of all agents.

    As JSON one page from the oldest on, or after `after`. As `text/event-stream` what follows `after` or
    `Last-Event-ID` and then what comes; without either only what comes.
    """
    return _answer(request, hub, None)


@operation(
    "GET",
    "/v1/agents/{agent_id:str}/events",
    query=EventsQuery,
    headers=("Last-Event-ID",),
    gives={200: (EventPage, SSE)},
    problems=(404, 422),
)
async def list_agent_events(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Read the events of one agent, from its creation on; as JSON or as `text/event-stream`."""
    hub.reader.run(lambda connection: agents.find(connection, request.auth.tenant, agent_id))
    return _answer(request, hub, agent_id)


def _answer(request: ApiRequest, hub: Hub, agent_id: str | None) -> ASGIApp:
    query = read_query(request, EventsQuery)
    tenant = request.auth.tenant

    def read(last: int, limit: int) -> list[AgentEvent]:
        return hub.reader.run(lambda c: events.after(c, tenant, last, limit, agent_id))

    if not wants_events(request):
        found = read(query.after or 0, query.limit)
        return reply(
            EventPage(
                events=[event_view(e) for e in found],
                next=found[-1].id if found else query.after or 0,
            )
        )
    start = _last_event_id(request)
    if start is None and query.after is not UNSET:
        start = query.after
    if start is None:
        start = 0 if agent_id is not None else hub.reader.run(_newest)
    return Stream(
        _follow(hub, agent_id, read, start), media_type=SSE, stopping=hub.stopping, heartbeat=True
    )


async def _follow(
    hub: Hub, agent_id: str | None, read: Callable[[int, int], list[AgentEvent]], last: int
) -> AsyncGenerator[bytes, None]:
    with hub.changed(agent_id) as changed:
        while True:
            changed.clear()
            found = read(last, _PAGE)
            for each in found:
                yield event(each.kind, event_view(each), str(each.id))
                last = each.id
            if len(found) < _PAGE:
                await changed.wait()


def _newest(connection: Connection) -> int:
    return events.newest_id(connection)


def _last_event_id(request: ApiRequest) -> int | None:
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise BadInputError(f"Last-Event-ID is the number of an event, not {given[:40]!r}")
    return int(given)


HANDLERS: Final = (list_events, list_agent_events)
