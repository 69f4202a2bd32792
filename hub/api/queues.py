"""Queues: the five counts per spoke and together; pause and resume."""

from collections import Counter
from typing import Final

from litestar.types import ASGIApp
from sqlalchemy import Connection

from hub.api.operation import ApiRequest, Segment, TheHub, operation, reply
from hub.api.views import queue_view
from hub.control import operate
from hub.control.hub import Hub
from hub.control.nudges import Nudges, join
from hub.schemas import QueuesView
from hub.store import agents, spokes
from shared.lifecycle import State


@operation("GET", "/v1/queues", gives={200: QueuesView})
async def list_queues(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Count the agents: pending, active, delayed, completed, failed; per spoke and together."""
    return reply(queues_of(hub, request.auth.tenant))


@operation("GET", "/v1/agents/queue/status", gives={200: QueuesView})
async def show_queue_status(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """The same as `/v1/queues`."""
    return reply(queues_of(hub, request.auth.tenant))


@operation("POST", "/v1/queues/pause", gives={200: QueuesView}, problems=(503,))
async def pause_queues(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Pause every queue: nothing more starts anywhere; what runs goes on."""
    return await _want(request, hub, None, paused=True)


@operation("POST", "/v1/queues/resume", gives={200: QueuesView}, problems=(503,))
async def resume_queues(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Resume every queue."""
    return await _want(request, hub, None, paused=False)


@operation("POST", "/v1/queues/{spoke_id:str}/pause", gives={200: QueuesView}, problems=(404, 503))
async def pause_queue(request: ApiRequest, hub: TheHub, spoke_id: Segment) -> ASGIApp:
    """Pause the queue of one spoke: nothing more is sent there, nothing more starts there."""
    return await _want(request, hub, spoke_id, paused=True)


@operation(
    "POST", "/v1/queues/{spoke_id:str}/resume", gives={200: QueuesView}, problems=(404, 503)
)
async def resume_queue(request: ApiRequest, hub: TheHub, spoke_id: Segment) -> ASGIApp:
    """Resume the queue of one spoke."""
    return await _want(request, hub, spoke_id, paused=False)


def queues_of(hub: Hub, tenant: str) -> QueuesView:
    """Return the counts of a tenant; dead letters without a spoke count in the total only."""

    def query(connection: Connection) -> QueuesView:
        found, dead = agents.counts(connection, tenant), agents.dead_counts(connection, tenant)
        fleet = spokes.all(connection)
        total: Counter[State] = Counter()
        for states in found.values():
            total.update(states)
        all_paused = bool(fleet) and all(spoke.paused for spoke in fleet)
        return QueuesView(
            total=queue_view(None, total, paused=all_paused, dead_letters=sum(dead.values())),
            spokes=[
                queue_view(
                    s.id, found.get(s.id, {}), paused=s.paused, dead_letters=dead.get(s.id, 0)
                )
                for s in fleet
            ],
        )

    return hub.reader.run(query)


async def _want(request: ApiRequest, hub: Hub, spoke_id: str | None, *, paused: bool) -> ASGIApp:
    caller = request.auth
    order = operate.pause if paused else operate.resume

    def use_case(connection: Connection, now_ms: int) -> tuple[None, Nudges]:
        wanted = (
            [spoke_id] if spoke_id is not None else [spoke.id for spoke in spokes.all(connection)]
        )
        done = [order(connection, each, actor=caller.actor, now_ms=now_ms) for each in wanted]
        return None, join(nudges for _, nudges in done)

    await hub.do(use_case)
    return reply(queues_of(hub, caller.tenant))


HANDLERS: Final = (
    list_queues,
    show_queue_status,
    pause_queues,
    resume_queues,
    pause_queue,
    resume_queue,
)
