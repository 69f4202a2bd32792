"""Folds a batch of a spoke's events into as few writes as there are tables.

Each event is applied in its order to a working copy of its agent, through the one lifecycle table; what is written at
the end is each agent's last state, every fact once, and what the facts prove about placements and outbox rows.

A spoke is believed about what was placed *there* and is not yet gone, and about nothing else: a site that was taken
over can neither end nor confirm what runs at another one.
"""

from collections.abc import Mapping, Sequence
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


class Fold:
    """One batch of one spoke; `add` each event, then `store` once."""

    def __init__(
        self,
        spoke: Spoke,
        known: Mapping[str, Agent],
        placed: Mapping[str, dict[int, str]],
        now_ms: int,
    ) -> None:
        self._spoke = spoke
        self._now_ms = now_ms
        self._agents = dict(known)
        # What is not gone from this spoke: agent → generation → id of its Spawn. The fold takes out what ends.
        self._open = placed
        self._changed: set[str] = set()
        self._facts: list[event_store.NewEvent] = []
        self._audit: list[audit.Entry] = []
        self._accepted: list[str] = []
        self._answered: list[str] = []
        self._placed: list[tuple[str, int, int]] = []
        self._gone: list[tuple[str, int, int]] = []
        self._excluded: list[tuple[str, str, str, str]] = []
        self._full = False

    def add(self, event: Event) -> None:
        """Apply one event; what it is too late for is left out, never an error."""
        match event.kind:
            case EventKind.QUEUED | EventKind.RUNNING | EventKind.RETRYING:
                # Also one that runs is accepted by that: a Spawn that came again is answered with how far it got.
                self._accepted.append(event.cmd)
                self._note_placed(event)
                self._advance(event, Fact(event.kind.value))
            case EventKind.SUCCEEDED | EventKind.FAILED:
                self._note_placed(event)
                self._end(event)
            case EventKind.KILLED | EventKind.EXPIRED:
                self._end(event)
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
        spoke = self._spoke.id
        placements.accept(connection, self._placed)
        placements.close(connection, spoke, self._gone)
        outbox.accept(connection, spoke, self._accepted, self._now_ms)
        outbox.close(connection, spoke, self._answered)
        outbox.close_of_agents(connection, spoke, self._gone)
        spokes.exclude(connection, self._excluded)
        if self._full:
            spokes.note_full(connection, spoke)
        self._confirm_kills(connection)
        agents.update(connection, [self._row(agent_id) for agent_id in self._changed])
        event_store.append(connection, self._facts)
        audit.append(connection, self._audit, self._now_ms)

    def _note_placed(self, event: Event) -> None:
        if event.agent is not None and event.gen in self._open.get(event.agent, ()):
            self._placed.append((event.agent, event.gen, self._now_ms))

    def _end(self, event: Event) -> None:
        """An outcome: since a spoke has one generation of an agent at a time, none up to this one is left there."""
        self._answered.append(event.cmd)
        self._advance(event, Fact(event.kind.value))
        agent = event.agent or ""
        self._close(agent, [gen for gen in self._open.get(agent, ()) if gen <= event.gen])

    def _close(self, agent: str, gens: Sequence[int]) -> None:
        for gen in gens:
            del self._open[agent][gen]
            self._gone.append((agent, gen, self._now_ms))

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
            and self._open.get(agent.id)
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
        if event.agent is None or not self._is_spawn(event):
            return
        # Whatever a spoke calls it, a Spawn that it refused is not there and will not be: the agent is placed anew.
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
        self._close(event.agent, [event.gen])

    def _is_spawn(self, event: Event) -> bool:
        """Tell whether an event answers the Spawn of a generation that is open here."""
        return self._open.get(event.agent or "", {}).get(event.gen) == event.cmd

    def _current(self, event: Event) -> Agent | None:
        """Return the event's agent if it is still in that generation, and here."""
        agent = self._agents.get(event.agent or "")
        if agent is None or agent.gen not in self._open.get(agent.id, ()):
            return None
        # A kill covers every generation up to its own, so "not here" may name a higher one.
        covers = event.kind is EventKind.KILLED and event.gen > agent.gen
        return agent if agent.gen == event.gen or covers else None

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
