"""Ripen: what only time brings. Agents whose start time has come become pending, those past their deadline expire."""

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from hub.control.nudges import NOTHING, Nudges
from hub.control.spawn import fact
from hub.store import agents, events
from hub.store.agents import Agent
from shared.lifecycle import Fact, advance

MAX_RIPE: Final = 1_000


def ripen(connection: sa.Connection, now_ms: int) -> tuple[int, Nudges]:
    """Move what is due; returns how many agents that were."""
    overdue = agents.overdue(connection, now_ms, MAX_RIPE)
    late = {agent.id for agent in overdue}
    due = [agent for agent in agents.due(connection, now_ms, MAX_RIPE) if agent.id not in late]
    changed = [
        *(
            _moved(agent, Fact.EXPIRED, "its deadline passed before it started", now_ms)
            for agent in overdue
        ),
        *(_moved(agent, Fact.DUE, "waits for a spoke", now_ms) for agent in due),
    ]
    if not changed:
        return 0, NOTHING
    agents.update(connection, [_row(agent) for agent in changed])
    events.append(
        connection, [fact(agent, agent.state.value, now_ms, now_ms) for agent in changed]
    )
    return len(changed), Nudges(place=bool(due), agents=frozenset(agent.id for agent in changed))


def _moved(agent: Agent, what: Fact, reason: str, now_ms: int) -> Agent:
    state = advance(agent.state, what)
    if state is None:
        raise AssertionError(f"{agent.state} has no {what}")
    ended_ms = now_ms if what is Fact.EXPIRED else None
    return msgspec.structs.replace(
        agent, state=state, reason=reason, updated_ms=now_ms, ended_ms=ended_ms
    )


def _row(agent: Agent) -> dict[str, Any]:
    return {
        "id": agent.id,
        "state": agent.state.value,
        "reason": agent.reason,
        "updated_ms": agent.updated_ms,
        "ended_ms": agent.ended_ms,
    }
