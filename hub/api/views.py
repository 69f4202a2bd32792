"""From rows to what the API shows. Pure; what a view needs beyond its row comes in."""

from collections.abc import Collection, Mapping
from functools import lru_cache

from hub.core.admission import priority_name
from hub.core.placement import credit
from hub.schemas import (
    AgentView,
    Counts,
    EventView,
    ExitView,
    KillView,
    PriorityView,
    QueueView,
    SpokeView,
    StatusView,
)
from hub.store.agents import Agent
from hub.store.events import AgentEvent
from hub.store.spokes import Spoke
from shared.clock import to_iso
from shared.lifecycle import AT_SPOKE, COUNTS, State
from shared.messages import Exit, Reply


def agent_view(
    agent: Agent,
    *,
    silent: Collection[str] = (),
    reason: str | None = None,
    position: int | None = None,
) -> AgentView:
    """Show an agent. `silent` are the spokes without a recent heartbeat: what is known of their agents is stale."""
    spec, end = agent.spec, agent.exit
    return AgentView(
        id=agent.id,
        tenant=agent.tenant,
        type=spec.type,
        command=list(spec.command),
        state=agent.state,
        reason=agent.reason if reason is None else reason,
        position=position,
        generation=agent.gen,
        attempt=agent.attempt,
        priority=_priority(agent.priority),
        spoke=agent.spoke,
        selector=agent.selector,
        labels=agent.labels,
        sandbox=spec.sandbox,
        created_at=_at(agent.created_ms),
        updated_at=_at(agent.updated_ms),
        observed_at=to_iso(agent.observed_ms),
        stale=agent.state in AT_SPOKE and agent.spoke in silent,
        start_at=to_iso(agent.start_ms),
        deadline=to_iso(agent.deadline_ms),
        retry_at=to_iso(agent.retry_ms) if agent.state is State.RETRYING else None,
        started_at=to_iso(agent.started_ms),
        ended_at=to_iso(agent.ended_ms),
        exit=None if end is None else _exit(end),
        kill=_kill(agent),
        max_retries=spec.max_retries,
        dead_letter=agent.dead,
    )


def event_view(event: AgentEvent) -> EventView:
    return EventView(
        id=event.id,
        agent=event.agent,
        at=_at(event.at_ms),
        recorded_at=_at(event.recorded_ms),
        kind=event.kind,
        state=event.state,
        reason=event.reason,
        generation=event.gen,
        attempt=event.attempt,
        spoke=event.spoke,
    )


def status_view(agent: AgentView, reply: Reply | None, reason: str) -> StatusView:
    """Show what the spoke itself says; `reply` None: it did not, and `reason` says why."""
    if reply is None:
        return StatusView(
            agent=agent, live=False, reason=reason, known=False, state="", attempt=0, position=None, processes=0,
            output_bytes=0, since=None,
        )  # fmt: skip
    return StatusView(
        agent=agent,
        live=True,
        reason=reason,
        known=reply.known,
        state=reply.state,
        attempt=reply.attempt,
        position=reply.position,
        processes=reply.processes,
        output_bytes=reply.output_bytes,
        since=to_iso(reply.since),
    )


def spoke_view(spoke: Spoke, *, unfinished: int, is_online: bool) -> SpokeView:
    """Show a spoke; counts are those of its last heartbeat, `unfinished` is the hub's own."""
    offer, beat = spoke.offer, spoke.heartbeat
    state = "absent" if spoke.seen_ms is None else "online" if is_online else "suspect"
    return SpokeView(
        id=spoke.id,
        connection=spoke.connection,
        state=state,
        reason=_why(spoke, state),
        incarnation=spoke.incarnation,
        observed_at=to_iso(spoke.seen_ms),
        slots=offer.slots if offer else 0,
        credit=credit(offer, unfinished, full=spoke.is_full) if offer else 0,
        running=beat.counts.running if beat else 0,
        queued=beat.counts.queued if beat else 0,
        unfinished=unfinished,
        paused=spoke.paused,
        cordoned=spoke.cordoned,
        sandboxes=[kind.value for kind in offer.kinds] if offer else [],
        mounts=list(offer.mounts) if offer else [],
        labels=offer.labels if offer else {},
        lacks=list(offer.lacks) if offer else [],
        clock_skew_ms=spoke.skew_ms,
        refusals=dict(beat.refusals) if beat else {},
        version=offer.version if offer else "",
    )


def queue_view(
    spoke: str | None, states: Mapping[State, int], *, paused: bool, dead_letters: int
) -> QueueView:
    return QueueView(spoke=spoke, counts=counts(states), paused=paused, dead_letters=dead_letters)


def counts(states: Mapping[State, int]) -> Counts:
    """Sum states into the five counts; those waiting for their start time are delayed, not pending."""
    found = {
        name: sum(states.get(state, 0) for state in members) for name, members in COUNTS.items()
    }
    waiting = states.get(State.WAITING, 0)
    return Counts(
        **{**found, "pending": found["pending"] - waiting, "delayed": found["delayed"] + waiting}
    )


def _why(spoke: Spoke, state: str) -> str:
    said = (
        (state == "absent", "its key is pinned, it was never heard"),
        (state == "suspect", "no heartbeat lately: what is shown of it is old"),
        (bool(spoke.trouble), spoke.trouble),
        (spoke.paused, "paused"),
        (spoke.cordoned, "cordoned"),
        (spoke.is_full, "its queue is full"),
    )
    return "; ".join(text for holds, text in said if holds)


@lru_cache(16)
def _priority(level: int) -> PriorityView:
    return PriorityView(level=level, name=priority_name(level))


def _exit(end: Exit) -> ExitView:
    return ExitView(
        kind=end.kind,
        code=end.code,
        signal=end.signal,
        detail=end.detail,
        output_bytes=end.output_bytes,
    )


def _kill(agent: Agent) -> KillView | None:
    if agent.kill_requested_ms is None:
        return None
    return KillView(
        requested_at=_at(agent.kill_requested_ms),
        accepted_at=to_iso(agent.kill_accepted_ms),
        confirmed_at=to_iso(agent.kill_confirmed_ms),
    )


def _at(ms: int) -> str:
    return to_iso(ms) or ""
