"""Folds a batch of a spoke's events into as few writes as there are tables.

Each event is applied in its order to a working copy of its agent, through the one lifecycle table; what is written at
the end is each agent's last state, every fact once, and what the facts prove about placements and outbox rows.
"""

from collections.abc import Mapping
from typing import Any, Final, assert_never

import msgspec
import sqlalchemy as sa
import structlog

from hub.control.spawn import fact
from hub.store import agents, audit, outbox, placements, spokes
from hub.store import events as event_store
from hub.store.agents import Agent
from hub.store.spokes import Spoke
from shared.envelope import Refusal
from shared.lifecycle import ENDED, Fact, State, advance
from shared.messages import Event, EventKind

log = structlog.get_logger()

_encode = msgspec.json.Encoder().encode

# What an event may change of an agent; the rest was fixed when it was spawned or belongs to placement.
_COLUMNS: Final = (
    "id", "state", "reason", "attempt", "spoke", "exit", "dead", "updated_ms", "observed_ms", "retry_ms",
    "started_ms", "ended_ms", "kill_accepted_ms", "kill_confirmed_ms",
)  # fmt: skip
# Refusals of a Spawn that say "not here, not now": the agent is placed again.
_RETURNS: Final = frozenset({Refusal.QUEUE_FULL, Refusal.POLICY, Refusal.SUPERSEDED})


class Fold:
    """One batch of one spoke; `add` each event, then `store` once."""

    def __init__(self, spoke: Spoke, known: Mapping[str, Agent], now_ms: int) -> None:
        self._spoke = spoke
        self._now_ms = now_ms
        self._agents = dict(known)
        self._changed: set[str] = set()
        self._facts: list[event_store.NewEvent] = []
        self._audit: list[audit.Entry] = []
        self._accepted: list[str] = []
        self._answered: list[str] = []
        self._placed: list[tuple[str, int, int]] = []
        self._gone: list[tuple[str, int, int]] = []
        self._excluded: list[tuple[str, str, str, str]] = []
        self._full = False
        self.wants_dispatch = False

    def add(self, event: Event) -> None:
        """Apply one event; what it is too late for is left out, never an error."""
        match event.kind:
            case EventKind.QUEUED:
                self._accepted.append(event.cmd)
                self._placed.append((event.agent or "", event.gen, self._now_ms))
                self._advance(event, Fact.QUEUED)
            case EventKind.RUNNING | EventKind.RETRYING:
                self._advance(event, Fact(event.kind.value))
            case EventKind.SUCCEEDED | EventKind.FAILED | EventKind.KILLED | EventKind.EXPIRED:
                self._gone.append((event.agent or "", event.gen, self._now_ms))
                self._answered.append(event.cmd)
                self._advance(event, Fact(event.kind.value))
            case EventKind.KILL_ACCEPTED:
                self._accepted.append(event.cmd)
                self._note_kill_accepted(event)
            case EventKind.APPLIED:
                self._answered.append(event.cmd)
            case EventKind.REFUSED:
                self._refuse(event)
            case _:
                assert_never(event.kind)

    def store(self, connection: sa.Connection) -> None:
        """Write everything, one statement per table."""
        placements.accept(connection, self._placed)
        placements.close(connection, self._spoke.id, self._gone)
        outbox.accept(connection, self._accepted, self._now_ms)
        outbox.close(connection, self._answered)
        outbox.close_of_agents(connection, self._spoke.id, self._gone)
        spokes.exclude(connection, self._excluded)
        if self._full:
            spokes.note_full(connection, self._spoke.id)
        self._confirm_kills(connection)
        agents.update(connection, [self._row(agent_id) for agent_id in self._changed])
        event_store.append(connection, self._facts)
        audit.append(connection, self._audit, self._now_ms)

    def _advance(self, event: Event, what: Fact, reason: str | None = None) -> None:
        agent = self._current(event)
        state = advance(agent.state, what) if agent is not None else None
        if agent is None or state is None:
            log.debug(
                "stale_fact", agent=event.agent, kind=event.kind, gen=event.gen, seq=event.seq
            )
            return
        text = event.reason if reason is None else reason
        ended = state in ENDED
        self._change(
            agent,
            event,
            what.value,
            state=state,
            reason=text or _REASONS.get(state, ""),
            attempt=max(agent.attempt, event.attempt),
            spoke=None if state is State.PENDING else self._spoke.id,
            exit_json=_encode(event.exit).decode() if event.exit is not None else agent.exit_json,
            dead=state is State.FAILED,
            retry_ms=event.retry_at,
            started_ms=event.at if state is State.RUNNING else agent.started_ms,
            ended_ms=event.at if ended else None,
        )
        if ended:
            self._audit.append(self._entry(event, agent, state))

    def _note_kill_accepted(self, event: Event) -> None:
        agent = self._agents.get(event.agent or "")
        if (
            agent is not None
            and agent.kill_accepted_ms is None
            and agent.kill_requested_ms is not None
        ):
            self._change(agent, event, "kill_accepted", kill_accepted_ms=self._now_ms)

    def _refuse(self, event: Event) -> None:
        name = event.reason.split(":", 1)[0]
        log.warning("refused", spoke=self._spoke.id, agent=event.agent, reason=event.reason)
        self._audit.append(self._entry(event, self._agents.get(event.agent or ""), None))
        if name == Refusal.EQUIVOCATION:
            return  # an alarm: it changes no state
        self._answered.append(event.cmd)
        if name not in _RETURNS or event.agent is None:
            return
        self._gone.append((event.agent, event.gen, self._now_ms))
        if name == Refusal.QUEUE_FULL:
            self._full = True
        else:
            policy = self._spoke.offer.policy if self._spoke.offer is not None else ""
            self._excluded.append((event.agent, self._spoke.id, policy, event.reason))
        agent = self._agents.get(event.agent)
        if agent is not None and agent.kill_requested_ms is not None:
            self._advance(event, Fact.KILLED, "killed before it was accepted")
        else:
            self._advance(event, Fact.RETURNED, f"{self._spoke.id} refused it ({event.reason})")

    def _current(self, event: Event) -> Agent | None:
        """Return the event's agent if it is still in that generation."""
        agent = self._agents.get(event.agent or "")
        if agent is None or agent.gen == event.gen:
            return agent
        # A kill covers every generation up to its own, so "not here" may name a higher one.
        return agent if event.kind is EventKind.KILLED and event.gen > agent.gen else None

    def _change(self, agent: Agent, event: Event, kind: str, **values: Any) -> None:
        changed = msgspec.structs.replace(
            agent, updated_ms=self._now_ms, observed_ms=self._now_ms, **values
        )
        self._agents[agent.id] = changed
        self._changed.add(agent.id)
        self._facts.append(fact(changed, kind, event.at, self._now_ms))

    def _confirm_kills(self, connection: sa.Connection) -> None:
        wanted = [
            agent.id
            for agent in (self._agents[gone[0]] for gone in self._gone if gone[0] in self._agents)
            if agent.kill_requested_ms is not None and agent.kill_confirmed_ms is None
        ]
        if not wanted:
            return
        still_open = placements.with_open_kill(connection, wanted)
        for agent_id in set(wanted) - still_open:
            agent = self._agents[agent_id]
            accepted = agent.kill_accepted_ms or self._now_ms
            changed = msgspec.structs.replace(
                agent, kill_confirmed_ms=self._now_ms, kill_accepted_ms=accepted
            )
            self._agents[agent_id] = changed
            self._changed.add(agent_id)
            self._facts.append(fact(changed, "kill_confirmed", self._now_ms, self._now_ms))
            self._audit.append(
                audit.Entry(
                    tenant=agent.tenant, actor=f"spoke:{self._spoke.id}", action="kill_confirmed", object=agent_id,
                    result="gone",
                )
            )  # fmt: skip

    def _row(self, agent_id: str) -> dict[str, Any]:
        row = agents.to_row(self._agents[agent_id])
        return {column: row[column] for column in _COLUMNS}

    def _entry(self, event: Event, agent: Agent | None, state: State | None) -> audit.Entry:
        return audit.Entry(
            tenant=agent.tenant if agent is not None else "default",
            actor=f"spoke:{self._spoke.id}",
            action="outcome" if state is not None else "refused",
            object=event.agent or event.cmd,
            result=state.value if state is not None else event.reason,
        )


_REASONS: Final[dict[State, str]] = {
    State.QUEUED: "accepted, waits for a slot",
    State.RUNNING: "",
    State.SUCCEEDED: "",
}
