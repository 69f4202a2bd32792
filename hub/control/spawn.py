"""Spawn: an admitted order becomes an agent row and an audit row, in one transaction; then the caller has its 202.

Orders come in groups (a batch, or whatever waited while the last group was committed) and each has its own result: an
agent, or the error of that order alone. An order under an idempotency key that is known with the same request is
answered with the agent that it made the first time.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from hub.control.nudges import Nudges
from hub.core.admission import Order
from hub.core.placement import requirements
from hub.store import agents, audit, events
from hub.store.agents import Agent
from shared.errors import ConflictError, FelloeError
from shared.ids import uuid7s
from shared.lifecycle import State

CREATED: Final = "created"

_encode = msgspec.json.Encoder().encode


class Spawned(msgspec.Struct, frozen=True):
    """The agent, and whether this order made it."""

    agent: Agent
    created: bool


def spawn(
    connection: sa.Connection, orders: Sequence[Order], now_ms: int
) -> tuple[list[Spawned | FelloeError], Nudges]:
    """Store the agents that these orders ask for; one result per order, in their order."""
    known = _known(connection, orders)
    results: list[Spawned | FelloeError] = []
    new: list[Agent] = []
    for order, agent_id in zip(orders, uuid7s(now_ms, len(orders)), strict=True):
        before = known.get((order.tenant, order.key)) if order.key is not None else None
        if before is not None:
            results.append(_again(order, before))
            continue
        agent = _agent(order, agent_id, now_ms)
        new.append(agent)
        results.append(Spawned(agent, created=True))
        if order.key is not None:
            known[order.tenant, order.key] = agent
    agents.insert(connection, new)
    events.append(connection, [_created(agent, now_ms) for agent in new])
    audit.append(connection, [_entry(agent) for agent in new], now_ms)
    return results, Nudges(place=bool(new), agents=frozenset(agent.id for agent in new))


def _known(
    connection: sa.Connection, orders: Sequence[Order]
) -> dict[tuple[str, str | None], Agent]:
    keys: dict[str, list[str]] = {}
    for order in orders:
        if order.key is not None:
            keys.setdefault(order.tenant, []).append(order.key)
    return {
        (tenant, key): agent
        for tenant, wanted in keys.items()
        for key, agent in agents.by_keys(connection, tenant, wanted).items()
    }


def _again(order: Order, before: Agent) -> Spawned | FelloeError:
    if before.request_sha256 == order.request_sha256:
        return Spawned(before, created=False)
    return ConflictError(
        f"this Idempotency-Key made agent {before.id} from another request; use a new key",
        code="idempotency_conflict",
    )


def _agent(order: Order, agent_id: str, now_ms: int) -> Agent:
    state, reason = _first_state(order)
    return Agent(
        id=agent_id,
        tenant=order.tenant,
        actor=order.actor,
        trace=order.trace,
        idempotency_key=order.key,
        request_sha256=order.request_sha256,
        spec_json=_encode(order.spec).decode(),
        labels_json=_encode(order.labels).decode(),
        selector_json=_encode(order.selector).decode(),
        pinned=order.spoke,
        signature=requirements(order.spec, order.selector, order.spoke).signature(),
        priority=order.spec.priority,
        start_ms=order.start_ms,
        deadline_ms=order.spec.deadline_ms,
        state=state,
        reason=reason,
        created_ms=now_ms,
        updated_ms=now_ms,
    )


def _first_state(order: Order) -> tuple[State, str]:
    if order.hold:
        return State.HELD, "held: release it to go on"
    if order.start_ms is not None:
        return State.WAITING, "waits for its start time"
    return State.PENDING, "waits for a spoke"


def _created(agent: Agent, now_ms: int) -> events.NewEvent:
    return fact(agent, CREATED, now_ms, now_ms)


def fact(agent: Agent, kind: str, at_ms: int, now_ms: int) -> events.NewEvent:
    """Return the event that shows an agent as it is now."""
    return events.NewEvent(
        tenant=agent.tenant,
        agent=agent.id,
        at_ms=at_ms,
        recorded_ms=now_ms,
        kind=kind,
        state=agent.state,
        reason=agent.reason,
        gen=agent.gen,
        attempt=agent.attempt,
        spoke=agent.spoke,
    )


def _entry(agent: Agent) -> audit.Entry:
    return audit.Entry(
        tenant=agent.tenant,
        actor=agent.actor,
        action="spawn",
        object=agent.id,
        result=str(agent.state),
    )
