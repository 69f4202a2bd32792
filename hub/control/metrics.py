"""What the hub counts, for Prometheus. Depths are read from the store when they are asked for; events are counted."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hub.store import agents, placements, spokes
from hub.store.writer import Reader
from shared.lifecycle import AT_SPOKE, State

_WAITING: Final = frozenset(
    {State.HELD, State.WAITING, State.PENDING, *AT_SPOKE} - {State.RUNNING}
)


class Metrics:
    """One registry per hub process. The names of the seeds' autoscaling metrics are kept exactly."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        registry = self.registry
        self.accepted = Counter("felloe_spawns", "Spawn orders answered", registry=registry)
        self.envelopes_sent = Counter(
            "felloe_command_envelopes", "Command envelopes published", registry=registry
        )
        self.refusals = Counter(
            "felloe_refusals", "Refused by trust, by name", ["refusal"], registry=registry
        )
        self.requests = Counter(
            "felloe_http_requests",
            "HTTP requests by route template",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "felloe_http_request_seconds",
            "HTTP request duration",
            ["method", "route"],
            registry=registry,
        )
        self._agents = Gauge("felloe_agents", "Agents by state", ["state"], registry=registry)
        self._online = Gauge(
            "felloe_spoke_online", "1 if heard of lately", ["spoke"], registry=registry
        )
        self._unfinished = Gauge(
            "felloe_spoke_unfinished", "Agents not proven gone", ["spoke"], registry=registry
        )
        self._depth = Gauge("task_queue_depth", "Agents that wait", registry=registry)
        self._per_slot = Gauge(
            "pending_tasks_per_agent", "Agents that wait, per running one", registry=registry
        )
        self._used = Gauge("agent_utilization_ratio", "Running agents per slot", registry=registry)

    def render(self, reader: Reader, now_ms: int, suspect_ms: int) -> bytes:
        """Return the text format, depths as they are now."""
        by_state: dict[State, int] = dict.fromkeys(State, 0)
        for states in reader.run(lambda c: agents.counts(c, "default")).values():
            for state, count in states.items():
                by_state[state] += count
        for state, count in by_state.items():
            self._agents.labels(state.value).set(count)
        unfinished = reader.run(placements.unfinished)
        slots = 0
        for spoke in reader.run(spokes.all):
            online = spoke.is_online(now_ms, suspect_ms)
            self._online.labels(spoke.id).set(online)
            self._unfinished.labels(spoke.id).set(unfinished.get(spoke.id, 0))
            slots += spoke.offer.slots if online and spoke.offer is not None else 0
        waiting, running = sum(by_state[state] for state in _WAITING), by_state[State.RUNNING]
        self._depth.set(waiting)
        self._per_slot.set(waiting / max(1, running))
        self._used.set(running / slots if slots else 0.0)
        return generate_latest(self.registry)
