"""Health: is the process alive, is it ready and if not what fails, and the figures."""

from collections import Counter
from typing import Final

from litestar.types import ASGIApp

from hub.api.operation import ApiRequest, TheHub, operation, reply, reply_bytes
from hub.api.queues import queues_of
from hub.api.spokes import spoke_views
from hub.schemas import AgentsHealthView, AgentsMetricsView, HealthView, SpokeView
from hub.store import agents
from shared.lifecycle import AT_SPOKE, State

# What Prometheus calls its text format.
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


@operation("GET", "/healthz", gives={200: HealthView}, is_open=True)
async def show_alive() -> ASGIApp:
    """Say that the process lives: nothing else is looked at."""
    return reply(HealthView(ok=True, parts={}))


@operation("GET", "/readyz", gives={200: HealthView, 503: HealthView}, is_open=True)
async def show_ready(hub: TheHub) -> ASGIApp:
    """Say whether the hub can do its work; 503 names the parts that fail.

    Sites that are silent or in trouble are named too, but the hub is ready without them.
    """
    parts = hub.health()
    ok = all(state == "ok" for state in parts.values())
    sites = {f"spoke {spoke.id}": _state_of(spoke) for spoke in spoke_views(hub)}
    return reply(HealthView(ok=ok, parts=parts | sites), 200 if ok else 503)


def _state_of(spoke: SpokeView) -> str:
    return "ok" if spoke.state == "online" and not spoke.reason else spoke.reason or spoke.state


@operation("GET", "/metrics", gives={200: (_PROMETHEUS,)})
async def show_metrics(hub: TheHub) -> ASGIApp:
    """Give the figures to Prometheus."""
    return reply_bytes(hub.metrics_text(), _PROMETHEUS)


@operation("GET", "/v1/agents/health", gives={200: AgentsHealthView})
async def show_agents_health(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Count the agents at spokes: those that stand well, those between attempts, those not heard of lately."""
    fleet = spoke_views(hub)
    online = {spoke.id for spoke in fleet if spoke.state == "online"}
    found: Counter[str] = Counter()
    for spoke, states in hub.reader.run(lambda c: agents.counts(c, request.auth.tenant)).items():
        for state, count in states.items():
            if state in AT_SPOKE:
                found["stale" if spoke not in online else state.value] += count
    stale, failing = found["stale"], found[State.RETRYING.value]
    return reply(
        AgentsHealthView(
            healthy=found.total() - stale - failing,
            stale=stale,
            failing=failing,
            spokes_online=len(online),
            spokes_suspect=sum(spoke.state == "suspect" for spoke in fleet),
        )
    )


@operation("GET", "/v1/agents/metrics", gives={200: AgentsMetricsView})
async def show_agents_metrics(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Give the figures for autoscaling as JSON."""
    counts = queues_of(hub, request.auth.tenant).total.counts
    slots = sum(spoke.slots for spoke in spoke_views(hub) if spoke.state == "online")
    depth = counts.pending + counts.delayed
    return reply(
        AgentsMetricsView(
            counts=counts,
            task_queue_depth=depth,
            pending_tasks_per_agent=depth / max(1, counts.active),
            agent_utilization_ratio=counts.active / slots if slots else 0.0,
        )
    )


OPEN_HANDLERS: Final = (show_alive, show_ready)
HANDLERS: Final = (show_metrics, show_agents_health, show_agents_metrics)
