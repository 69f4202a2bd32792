"""What people ask for of agents that exist: kill, release, remove, requeue or discard; and of queues: pause, resume.

A kill is certain: it sets `kill_gen` to the newest generation, after which nothing is placed, and goes to every spoke
with a placement that is not proven gone, again and again, until its signed answer. Where there is no such placement
it is confirmed at once. Asking twice changes nothing.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from hub.control.nudges import NOTHING, Nudges, join
from hub.control.spawn import fact
from hub.store import agents, audit, events, outbox, placements, spokes
from hub.store.agents import Agent
from hub.store.placements import Placement
from shared.errors import ConflictError, FelloeError
from shared.ids import uuid7
from shared.lifecycle import AT_SPOKE, ENDED, Fact, State, advance
from shared.messages import Kill, Pause, Remove, Resume

KILL_REASON: Final = "killed"


def kill(
    connection: sa.Connection,
    tenant: str,
    agent_id: str,
    *,
    actor: str,
    grace_ms: int | None,
    reason: str,
    now_ms: int,
) -> tuple[Agent, Nudges]:
    """Order that every generation of an agent be gone. Of no effect on one that ended.

    On one that is being killed it has an effect only with a grace of its own: an operator may hurry.
    """
    agent = agents.find(connection, tenant, agent_id)
    again = agent.kill_requested_ms is not None
    if (agent.state in ENDED and agent.state is not State.LOST) or (again and grace_ms is None):
        return agent, NOTHING
    open_ = [
        placement
        for placement in _open(connection, agent)
        if not _take_back(connection, placement, now_ms)
    ]
    asked = msgspec.structs.replace(
        agent,
        kill_gen=agent.gen,
        kill_requested_ms=agent.kill_requested_ms or now_ms,
        updated_ms=now_ms,
    )
    for placement in open_:
        item = _kill_item(
            asked, placement, now_ms, actor=actor, grace_ms=grace_ms, reason=reason or KILL_REASON
        )
        outbox.put(connection, placement.spoke, [item], now_ms)
    facts = [] if again else [fact(asked, "kill_requested", now_ms, now_ms)]
    if not open_:
        asked = _ended(asked, Fact.KILLED, reason or KILL_REASON, now_ms)
        asked = msgspec.structs.replace(asked, kill_accepted_ms=now_ms, kill_confirmed_ms=now_ms)
        facts.append(fact(asked, Fact.KILLED.value, now_ms, now_ms))
    _store(connection, asked, facts, now_ms, actor=actor, action="kill")
    touched = frozenset(placement.spoke for placement in open_)
    return asked, Nudges(place=True, spokes=touched, agents=frozenset({agent_id}))


def release(
    connection: sa.Connection, tenant: str, agent_id: str, *, actor: str, now_ms: int
) -> tuple[Agent, Nudges]:
    """Let a held agent go on; raises ConflictError for one that is not held."""
    agent = agents.find(connection, tenant, agent_id)
    if agent.state is not State.HELD:
        raise ConflictError(f"agent {agent_id} is {agent.state}, only a held one can be released")
    released = _moved(agent, Fact.RELEASED, "waits for its start time", now_ms)
    if released.start_ms is None or released.start_ms <= now_ms:
        released = _moved(released, Fact.DUE, "waits for a spoke", now_ms)
    _store(
        connection,
        released,
        [fact(released, Fact.RELEASED.value, now_ms, now_ms)],
        now_ms,
        actor=actor,
        action="release",
    )
    return released, Nudges(place=True, agents=frozenset({agent_id}))


def remove(
    connection: sa.Connection, tenant: str, agent_id: str, *, actor: str, now_ms: int
) -> tuple[Agent, Nudges]:
    """Drop an agent that has not started: killed with the reason `removed`; raises ConflictError if it runs."""
    agent = agents.find(connection, tenant, agent_id)
    if agent.state in ENDED:
        return agent, NOTHING
    if agent.state is State.RUNNING:
        raise ConflictError(f"agent {agent_id} is running: kill it instead", code="running")
    if agent.kill_requested_ms is not None or outbox.has(connection, agent_id, "remove"):
        return agent, NOTHING
    open_ = [
        placement
        for placement in _open(connection, agent)
        if not _take_back(connection, placement, now_ms)
    ]
    if agent.state not in AT_SPOKE or not open_:
        removed = _ended(agent, Fact.KILLED, "removed", now_ms)
        _store(
            connection,
            removed,
            [fact(removed, Fact.KILLED.value, now_ms, now_ms)],
            now_ms,
            actor=actor,
            action="remove",
        )
        return removed, Nudges(place=True, agents=frozenset({agent_id}))
    for placement in open_:
        item = Remove(
            id=uuid7(now_ms),
            actor=actor,
            tenant=tenant,
            trace=agent.trace,
            agent=agent_id,
            gen=placement.gen,
        )
        outbox.put(connection, placement.spoke, [item], now_ms)
    _store(
        connection,
        agent,
        [fact(agent, "remove_requested", now_ms, now_ms)],
        now_ms,
        actor=actor,
        action="remove",
    )
    return agent, Nudges(
        spokes=frozenset(placement.spoke for placement in open_), agents=frozenset({agent_id})
    )


def requeue(
    connection: sa.Connection,
    tenant: str,
    agent_ids: Sequence[str],
    *,
    actor: str,
    reason: str,
    now_ms: int,
) -> tuple[list[tuple[str, str]], Nudges]:
    """Send dead letters back: each is placed anew with the next generation. Per agent: "" or why not."""
    return _each_dead(
        connection, tenant, agent_ids, "requeue", actor=actor, reason=reason, now_ms=now_ms
    )


def discard(
    connection: sa.Connection,
    tenant: str,
    agent_ids: Sequence[str],
    *,
    actor: str,
    reason: str,
    now_ms: int,
) -> tuple[list[tuple[str, str]], Nudges]:
    """Take dead letters off the list; the agents stay `failed`. Per agent: "" or why not."""
    return _each_dead(
        connection, tenant, agent_ids, "discard", actor=actor, reason=reason, now_ms=now_ms
    )


def pause(
    connection: sa.Connection, spoke_id: str, *, actor: str, now_ms: int
) -> tuple[None, Nudges]:
    """Have a spoke lease nothing more, and place nothing there; what runs goes on."""
    return _want(connection, spoke_id, paused=True, actor=actor, now_ms=now_ms)


def resume(
    connection: sa.Connection, spoke_id: str, *, actor: str, now_ms: int
) -> tuple[None, Nudges]:
    """End a pause."""
    return _want(connection, spoke_id, paused=False, actor=actor, now_ms=now_ms)


def _want(
    connection: sa.Connection, spoke_id: str, *, paused: bool, actor: str, now_ms: int
) -> tuple[None, Nudges]:
    spoke = spokes.find(connection, spoke_id)
    if spoke.paused is paused:
        return None, NOTHING
    rev = _send_wanted(connection, spoke_id, paused=paused, actor=actor, now_ms=now_ms)
    action = "pause" if paused else "resume"
    entry = audit.Entry(
        tenant="default",
        actor=actor,
        action=action,
        object=f"spoke:{spoke_id}",
        result=f"rev {rev}",
    )
    audit.append(connection, [entry], now_ms)
    return None, Nudges(place=True, spokes=frozenset({spoke_id}))


def say_wanted_again(connection: sa.Connection, spoke: spokes.Spoke, now_ms: int) -> None:
    """Tell a spoke whose journal is new what it was told before: its answer to that closed the row."""
    if spoke.rev > 0:
        _send_wanted(connection, spoke.id, paused=spoke.paused, actor="hub", now_ms=now_ms)


def _send_wanted(
    connection: sa.Connection, spoke_id: str, *, paused: bool, actor: str, now_ms: int
) -> int:
    rev = spokes.want(connection, spoke_id, paused=paused)
    outbox.replace_wanted(connection, spoke_id)
    kind = Pause if paused else Resume
    item = kind(id=uuid7(now_ms), actor=actor, tenant="default", trace="", rev=rev)
    outbox.put(connection, spoke_id, [item], now_ms)
    return rev


def _each_dead(
    connection: sa.Connection,
    tenant: str,
    agent_ids: Sequence[str],
    action: str,
    *,
    actor: str,
    reason: str,
    now_ms: int,
) -> tuple[list[tuple[str, str]], Nudges]:
    results: list[tuple[str, str]] = []
    nudges: list[Nudges] = []
    for agent_id in dict.fromkeys(agent_ids):
        try:
            agent = agents.find(connection, tenant, agent_id)
        except FelloeError as error:
            results.append((agent_id, str(error)))
            continue
        if not agent.dead:
            results.append((agent_id, f"not a dead letter: it is {agent.state}"))
            continue
        changed = _requeued(agent, now_ms) if action == "requeue" else _discarded(agent, now_ms)
        told = fact(changed, f"{action}ed", now_ms, now_ms)
        _store(
            connection,
            changed,
            [msgspec.structs.replace(told, reason=reason)],
            now_ms,
            actor=actor,
            action=action,
        )
        results.append((agent_id, ""))
        nudges.append(Nudges(place=action == "requeue", agents=frozenset({agent_id})))
    return results, join(nudges)


def _requeued(agent: Agent, now_ms: int) -> Agent:
    moved = _moved(agent, Fact.REQUEUED, "requeued, waits for a spoke", now_ms)
    return msgspec.structs.replace(
        moved, dead=False, attempt=0, exit_json=None, spoke=None, started_ms=None, ended_ms=None, retry_ms=None,
        kill_requested_ms=None, kill_accepted_ms=None, kill_confirmed_ms=None,
    )  # fmt: skip


def _discarded(agent: Agent, now_ms: int) -> Agent:
    return msgspec.structs.replace(agent, dead=False, updated_ms=now_ms)


def _open(connection: sa.Connection, agent: Agent) -> list[Placement]:
    return [p for p in placements.of_agent(connection, agent.id) if p.gone_ms is None]


def _take_back(connection: sa.Connection, placement: Placement, now_ms: int) -> bool:
    """Take back a spawn that certainly never left the hub; True when that closed the placement."""
    if placement.accepted_ms is not None or outbox.spawn_was_sent(connection, placement.cmd):
        return False
    outbox.close(connection, placement.spoke, [placement.cmd])
    placements.close(connection, placement.spoke, [(placement.agent, placement.gen, now_ms)])
    return True


def _kill_item(
    agent: Agent,
    placement: Placement,
    now_ms: int,
    *,
    actor: str,
    grace_ms: int | None,
    reason: str,
) -> Kill:
    return Kill(
        id=uuid7(now_ms),
        actor=actor,
        tenant=agent.tenant,
        trace=agent.trace,
        agent=agent.id,
        gen=placement.gen,
        grace_ms=grace_ms,
        reason=reason,
    )


def _ended(agent: Agent, what: Fact, reason: str, now_ms: int) -> Agent:
    return msgspec.structs.replace(_moved(agent, what, reason, now_ms), ended_ms=now_ms)


def _moved(agent: Agent, what: Fact, reason: str, now_ms: int) -> Agent:
    state = advance(agent.state, what)
    if state is None:
        raise ConflictError(f"agent {agent.id} is {agent.state}: {what} is not possible")
    return msgspec.structs.replace(agent, state=state, reason=reason, updated_ms=now_ms)


def _store(
    connection: sa.Connection,
    agent: Agent,
    facts: Sequence[events.NewEvent],
    now_ms: int,
    *,
    actor: str,
    action: str,
) -> None:
    row: dict[str, Any] = agents.to_row(agent)
    agents.update(connection, [row])
    events.append(connection, facts)
    entry = audit.Entry(
        tenant=agent.tenant, actor=actor, action=action, object=agent.id, result=agent.state.value
    )
    audit.append(connection, [entry], now_ms)
