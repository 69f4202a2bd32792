"""Place: pending agents meet spokes with credit. One transaction: placement, command item in the outbox, agent row.

Only this transaction raises an agent's generation. Credit is counted inside it, from placements that are not proven
gone, so no message is needed for it and nothing can be given twice. Agents that fit nowhere cost one look per
signature; whoever fits but finds no credit waits in its order: effective priority, then first come.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa

from hub.control.nudges import NOTHING, Nudges
from hub.core import placement
from hub.core.ageing import effective_priority
from hub.core.placement import Candidate
from hub.store import agents, events, outbox, placements, spokes
from hub.store.agents import Agent, PendingHead
from hub.store.placements import Placement
from shared.ids import uuid7s
from shared.lifecycle import Fact, State, advance
from shared.messages import AgentSpec, Spawn

# One transaction places at most this many, so that others get their turn at the writer.
MAX_PLACED: Final = 512

_decode_spec = msgspec.json.Decoder(AgentSpec).decode


class _Choice(NamedTuple):
    head: PendingHead
    spoke: Candidate


def fleet(connection: sa.Connection, now_ms: int, suspect_ms: int) -> list[Candidate]:
    """Return every spoke as placement sees it now."""
    unfinished = placements.unfinished(connection)
    return [
        _candidate(spoke, unfinished.get(spoke.id, 0), now_ms, suspect_ms)
        for spoke in spokes.all(connection)
    ]


def place(connection: sa.Connection, now_ms: int, suspect_ms: int) -> tuple[int, Nudges]:
    """Place what can be placed; returns how many that were."""
    candidates = fleet(connection, now_ms, suspect_ms)
    if not any(candidate.credit > 0 for candidate in candidates):
        return 0, NOTHING
    choices = _choose(connection, candidates, now_ms)
    if not choices:
        return 0, NOTHING
    _store(connection, choices, now_ms)
    return len(choices), Nudges(
        place=len(choices) >= MAX_PLACED,
        spokes=frozenset(choice.spoke.id for choice in choices),
        agents=frozenset(choice.head.id for choice in choices),
    )


def explain(connection: sa.Connection, agent: Agent, now_ms: int, suspect_ms: int) -> str:
    """Return why a pending agent waits, from the fleet as it is now."""
    candidates = fleet(connection, now_ms, suspect_ms)
    exclusions = _by_spoke(spokes.exclusions_of(connection, [agent.id]), agent.id)
    return placement.why_pending(
        placement.parse_signature(agent.signature), candidates, exclusions
    )


def _candidate(spoke: spokes.Spoke, unfinished: int, now_ms: int, suspect_ms: int) -> Candidate:
    offer = spoke.offer
    return Candidate(
        id=spoke.id,
        online=spoke.is_online(now_ms, suspect_ms),
        active=spoke.connection == "active",
        paused=spoke.paused,
        cordoned=spoke.cordoned,
        full=spoke.is_full,
        skew_ms=spoke.skew_ms or 0,
        trouble=spoke.trouble,
        offer=offer,
        credit=placement.credit(offer, unfinished, full=spoke.is_full) if offer is not None else 0,
        load=unfinished,
    )


def _choose(
    connection: sa.Connection, candidates: Sequence[Candidate], now_ms: int
) -> list[_Choice]:
    fits: dict[str, list[Candidate]] = {}
    waiting: list[tuple[int, int, str, str, PendingHead]] = []
    for signature in agents.pending_signatures(connection):
        found = placement.fitting(placement.parse_signature(signature), candidates)
        room = sum(candidate.credit for candidate in found)
        if room == 0:
            continue
        fits[signature] = found
        takers = [
            (spoke.id, spoke.offer.policy) for spoke in found if spoke.credit > 0 and spoke.offer
        ]
        for head in agents.pending_heads(connection, signature, takers, min(room, MAX_PLACED)):
            rank = effective_priority(head.priority, now_ms - head.created_ms)
            waiting.append((-rank, head.created_ms, head.id, signature, head))
    waiting.sort(key=lambda entry: entry[:3])
    exclusions = spokes.exclusions_of(connection, [entry[2] for entry in waiting])
    choices: list[_Choice] = []
    for _, _, agent_id, signature, head in waiting:
        refused = _by_spoke(exclusions, agent_id) if exclusions else placement.NO_EXCLUSIONS
        spoke = placement.choose(fits[signature], refused)
        if spoke is not None:
            spoke.credit -= 1
            spoke.load += 1
            choices.append(_Choice(head, spoke))
            if len(choices) >= MAX_PLACED:
                break
    return choices


def _by_spoke(
    exclusions: dict[tuple[str, str], tuple[str, str]], agent: str
) -> dict[str, tuple[str, str]]:
    return {
        spoke: refused for (excluded, spoke), refused in exclusions.items() if excluded == agent
    }


def _store(connection: sa.Connection, choices: Sequence[_Choice], now_ms: int) -> None:
    placed = advance(State.PENDING, Fact.PLACED)
    if placed is None:
        raise AssertionError("the lifecycle table has no placement")
    by_spoke: dict[str, list[Spawn]] = {}
    rows: list[tuple[_Choice, Spawn]] = []
    for choice, cmd in zip(choices, uuid7s(now_ms, len(choices)), strict=True):
        item = _spawn_item(choice.head, cmd)
        by_spoke.setdefault(choice.spoke.id, []).append(item)
        rows.append((choice, item))
    hashes: dict[str, str] = {}
    for spoke, items in by_spoke.items():
        hashes.update(outbox.put(connection, spoke, items, now_ms))
    placements.insert(
        connection, [_placement(choice, item, hashes[item.id], now_ms) for choice, item in rows]
    )
    agents.update(connection, [_update(choice, placed, now_ms) for choice in choices])
    events.append(connection, [_event(choice, placed, now_ms) for choice in choices])


def _spawn_item(head: PendingHead, cmd: str) -> Spawn:
    spec = _decode_spec(head.spec_json)
    return Spawn(
        id=cmd,
        actor=head.actor,
        tenant=head.tenant,
        trace=head.trace,
        agent=head.id,
        gen=head.gen + 1,
        spec=spec,
    )


def _placement(choice: _Choice, item: Spawn, item_sha256: str, now_ms: int) -> Placement:
    return Placement(
        agent=item.agent,
        gen=item.gen,
        tenant=item.tenant,
        spoke=choice.spoke.id,
        cmd=item.id,
        cmd_sha256=item_sha256,
        placed_ms=now_ms,
    )


def _update(choice: _Choice, state: State, now_ms: int) -> dict[str, object]:
    return {
        "id": choice.head.id,
        "state": state.value,
        "reason": "waits for the spoke's acceptance",
        "gen": choice.head.gen + 1,
        "kill_gen": max(choice.head.kill_gen, choice.head.gen),
        "attempt": 0,
        "spoke": choice.spoke.id,
        "updated_ms": now_ms,
    }


def _event(choice: _Choice, state: State, now_ms: int) -> events.NewEvent:
    return events.NewEvent(
        tenant=choice.head.tenant,
        agent=choice.head.id,
        at_ms=now_ms,
        recorded_ms=now_ms,
        kind=Fact.PLACED.value,
        state=state,
        reason=f"on {choice.spoke.id}",
        gen=choice.head.gen + 1,
        attempt=0,
        spoke=choice.spoke.id,
    )
