"""Agents: spawn, look, kill, release, remove. `/agents/{agent_id}` gives way to the fixed names beside it."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from litestar.types import ASGIApp
from msgspec import UNSET
from sqlalchemy import Connection

from hub.api.auth import Caller
from hub.api.operation import (
    Answer,
    ApiRequest,
    Segment,
    TheHub,
    decode_body,
    operation,
    read_body,
    read_query,
    receive_body,
    reply,
    trace_of,
)
from hub.api.problems import MalformedError, problem_of
from hub.api.views import agent_view, status_view
from hub.control import operate, place
from hub.control.hub import Hub
from hub.control.spawn import Spawned
from hub.core.admission import Order, admit
from hub.schemas import (
    AgentPage,
    AgentsQuery,
    AgentView,
    BatchRequest,
    BatchResult,
    IdempotencyKey,
    KillRequest,
    SpawnRequest,
    SpawnResult,
    StatusView,
)
from hub.store import agents, spokes
from hub.store.agents import Agent, Filter
from shared.errors import BadInputError, FelloeError
from shared.lifecycle import State

KEY_HEADER: Final = "idempotency-key"
# Saying why costs a look at the fleet each: a page that shows more pending ones shows the stored reason for the rest.
_EXPLAINED: Final = 50


@operation(
    "POST",
    "/v1/agents",
    takes=SpawnRequest,
    headers=("Idempotency-Key", "traceparent"),
    gives={200: AgentView, 202: AgentView},
    problems=(409, 422, 429, 503),
)
async def spawn_agent(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Spawn an agent.

    202 means that it is durably accepted; where it goes follows. The same `Idempotency-Key` with the same body is
    answered with 200 and the agent of the first time, with another body with 409.
    """
    body = await receive_body(request.receive, request.headers, request.app.request_max_body_size)
    return await spawn_one(hub, request.auth, request.headers, body)


async def spawn_one(hub: Hub, caller: Caller, headers: Mapping[str, str], body: bytes) -> Answer:
    """Spawn what a body describes: the whole of `POST /v1/agents` once it is known who calls."""
    wish = decode_body(body, SpawnRequest)
    order = _admit(hub, caller, wish, _key_of(headers), trace_of(headers))
    outcome = (await hub.spawn([order]))[0]
    if isinstance(outcome, FelloeError):
        raise outcome
    view = _spawned_view(hub, outcome)
    return reply(view, 202 if outcome.created else 200, {"Location": f"/v1/agents/{view.id}"})


@operation(
    "POST",
    "/v1/agents/batch",
    takes=BatchRequest,
    headers=("traceparent",),
    gives={200: BatchResult},
    problems=(422, 503),
)
async def spawn_batch(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Spawn up to 1,000 agents.

    Each item has its own result, in the order of the request: an agent or a problem. Nothing is all or nothing.
    """
    batch = await read_body(request, BatchRequest)
    keys = batch.idempotency_keys or [None] * len(batch.agents)
    if len(keys) != len(batch.agents):
        raise BadInputError(
            f"{len(keys)} idempotency_keys for {len(batch.agents)} agents: give one each, or none"
        )
    trace = trace_of(request.headers)
    orders: list[Order | FelloeError] = []
    for item, key in zip(batch.agents, keys, strict=True):
        try:
            orders.append(_admit(hub, request.auth, decode_body(item, SpawnRequest), key, trace))
        except FelloeError as error:
            orders.append(error)
    outcomes = iter(await hub.spawn([order for order in orders if isinstance(order, Order)]))
    results = [
        _result(hub, index, order if isinstance(order, FelloeError) else next(outcomes))
        for index, order in enumerate(orders)
    ]
    accepted = sum(result.agent is not None for result in results)
    return reply(BatchResult(results=results, accepted=accepted, refused=len(results) - accepted))


@operation("GET", "/v1/agents", query=AgentsQuery, gives={200: AgentPage})
async def list_agents(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """List agents, newest first.

    `next` is the `cursor` of the next page.
    """
    query = read_query(request, AgentsQuery)
    wanted = Filter(
        tenant=request.auth.tenant,
        states=tuple(query.state),
        spoke=query.spoke or None,
        type=query.type or None,
        labels=dict(label.split("=", 1) for label in query.label),
        dead=None if query.dead_letter is UNSET else query.dead_letter,
    )
    return reply(page_of(hub, wanted, query.cursor or None, query.limit))


@operation("GET", "/v1/agents/{agent_id:str}", gives={200: AgentView}, problems=(404,))
async def show_agent(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Show an agent: the last proven facts, with their age, and why it waits if it does."""
    return reply(_found_view(request, hub, agent_id))


@operation(
    "POST",
    "/v1/agents/{agent_id:str}/kill",
    takes=KillRequest,
    body_optional=True,
    gives={202: AgentView},
    problems=(404, 409, 503),
)
async def kill_agent(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Kill an agent, whatever its state.

    The order is kept until its spoke has confirmed it: `kill.confirmed_at` is when the sandbox was seen gone. Asking
    twice changes nothing.
    """
    wish = await read_body(request, KillRequest, optional=True)
    caller = request.auth

    def use_case(connection: Connection, now_ms: int):
        return operate.kill(
            connection,
            caller.tenant,
            agent_id,
            actor=caller.actor,
            grace_ms=None if wish.grace_s is None else round(wish.grace_s * 1000),
            reason=wish.reason,
            now_ms=now_ms,
        )

    await hub.do(use_case)
    return reply(_found_view(request, hub, agent_id), 202, {"Location": f"/v1/agents/{agent_id}"})


@operation(
    "POST", "/v1/agents/{agent_id:str}/release", gives={200: AgentView}, problems=(404, 409, 503)
)
async def release_agent(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Let an agent go on that was spawned with `hold`."""
    caller = request.auth
    await hub.do(
        lambda connection, now_ms: operate.release(
            connection, caller.tenant, agent_id, actor=caller.actor, now_ms=now_ms
        )
    )
    return reply(_found_view(request, hub, agent_id))


@operation("DELETE", "/v1/agents/{agent_id:str}", gives={202: AgentView}, problems=(404, 409, 503))
async def remove_agent(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Remove an agent that has not started.

    It ends as `killed` with the reason `removed`; 409 if it runs.
    """
    caller = request.auth
    await hub.do(
        lambda connection, now_ms: operate.remove(
            connection, caller.tenant, agent_id, actor=caller.actor, now_ms=now_ms
        )
    )
    return reply(_found_view(request, hub, agent_id), 202, {"Location": f"/v1/agents/{agent_id}"})


@operation("GET", "/v1/agents/{agent_id:str}/status", gives={200: StatusView}, problems=(404,))
async def ask_status(request: ApiRequest, hub: TheHub, agent_id: Segment) -> ASGIApp:
    """Ask the spoke itself how an agent is.

    A signed question and a signed answer; `live` is false if none came in time, and `reason` says why.
    """
    agent = hub.reader.run(
        lambda connection: agents.find(connection, request.auth.tenant, agent_id)
    )
    answer, reason = await hub.ask_status(agent)
    return reply(status_view(_found_view(request, hub, agent_id), answer, reason))


def page_of(hub: Hub, wanted: Filter, cursor: str | None, limit: int) -> AgentPage:
    """Return a page of agents; those that are pending say why, as the fleet is now."""
    now_ms = hub.now_ms()

    def query(connection: Connection) -> AgentPage:
        found = agents.page(connection, wanted, cursor, limit + 1)
        rows = found[:limit]
        silent = _silent(connection, hub, now_ms)
        views = _explained(connection, hub, rows, silent, now_ms)
        return AgentPage(agents=views, next=rows[-1].id if len(found) > limit else None)

    return hub.reader.run(query)


def _explained(
    connection: Connection, hub: Hub, rows: Sequence[Agent], silent: frozenset[str], now_ms: int
) -> list[AgentView]:
    pending = [agent for agent in rows if agent.state is State.PENDING][:_EXPLAINED]
    reasons = {
        agent.id: place.explain(connection, agent, now_ms, _suspect_ms(hub)) for agent in pending
    }
    return [agent_view(agent, silent=silent, reason=reasons.get(agent.id)) for agent in rows]


def _found_view(request: ApiRequest, hub: Hub, agent_id: str) -> AgentView:
    now_ms = hub.now_ms()

    def query(connection: Connection) -> AgentView:
        agent = agents.find(connection, request.auth.tenant, agent_id)
        return agent_view(
            agent,
            silent=_silent(connection, hub, now_ms),
            reason=place.explain(connection, agent, now_ms, _suspect_ms(hub))
            if agent.state is State.PENDING
            else None,
            position=agents.position(connection, agent),
        )

    return hub.reader.run(query)


def _admit(hub: Hub, caller: Caller, wish: SpawnRequest, key: str | None, trace: str) -> Order:
    return admit(
        wish,
        hub.types,
        tenant=caller.tenant,
        actor=caller.actor,
        key=key,
        trace=trace,
        now_ms=hub.now_ms(),
    )


def _key_of(headers: Mapping[str, str]) -> str | None:
    given = headers.get(KEY_HEADER)
    if given is None:
        return None
    try:
        return msgspec.convert(given, IdempotencyKey)
    except msgspec.ValidationError as error:
        raise MalformedError(error, KEY_HEADER) from None


def _spawned_view(hub: Hub, outcome: Spawned) -> AgentView:
    """A new agent has been nowhere yet; one that was there before may be anywhere."""
    if outcome.created:
        return agent_view(outcome.agent)
    return agent_view(
        outcome.agent,
        silent=hub.reader.run(lambda connection: _silent(connection, hub, hub.now_ms())),
    )


def _result(hub: Hub, index: int, outcome: Spawned | FelloeError) -> SpawnResult:
    if isinstance(outcome, FelloeError):
        return SpawnResult(index=index, agent=None, created=False, problem=problem_of(outcome))
    return SpawnResult(
        index=index, agent=_spawned_view(hub, outcome), created=outcome.created, problem=None
    )


def _silent(connection: Connection, hub: Hub, now_ms: int) -> frozenset[str]:
    suspect_ms = _suspect_ms(hub)
    return frozenset(s.id for s in spokes.all(connection) if not s.is_online(now_ms, suspect_ms))


def _suspect_ms(hub: Hub) -> int:
    return round(hub.settings.timing.suspect_s * 1000)


HANDLERS: Final = (
    spawn_agent,
    spawn_batch,
    list_agents,
    show_agent,
    kill_agent,
    release_agent,
    remove_agent,
    ask_status,
)
