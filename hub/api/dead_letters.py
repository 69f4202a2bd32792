"""Dead letters: agents whose attempts are used up. An operator looks, and sends them back or lets them go."""

from collections.abc import Callable
from typing import Any, Final

from litestar.types import ASGIApp
from sqlalchemy import Connection

from hub.api.agents import page_of
from hub.api.operation import ApiRequest, TheHub, operation, read_body, read_query, reply
from hub.control import operate
from hub.control.hub import Hub
from hub.control.nudges import Nudges
from hub.schemas import (
    AgentPage,
    DeadLetterResult,
    DeadLetterResults,
    DeadLettersQuery,
    DeadLettersRequest,
)
from hub.store import agents
from hub.store.agents import Filter
from shared.errors import BadInputError

# One transaction moves at most this many; `left` says how many remain.
_MOST: Final = 1_000


@operation("GET", "/v1/dead-letters", query=DeadLettersQuery, gives={200: AgentPage})
async def list_dead_letters(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """List the dead letters, newest first."""
    query = read_query(request, DeadLettersQuery)
    wanted = Filter(
        tenant=request.auth.tenant, dead=True, spoke=query.spoke or None, type=query.type or None
    )
    return reply(page_of(hub, wanted, query.cursor or None, query.limit))


@operation(
    "POST",
    "/v1/dead-letters/requeue",
    takes=DeadLettersRequest,
    gives={200: DeadLetterResults},
    problems=(422, 503),
)
async def requeue_dead_letters(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Send dead letters back.

    Each is placed anew with the next generation. `left` says how many dead letters remain after this call.
    """
    return await _each(request, hub, operate.requeue)


@operation(
    "POST",
    "/v1/dead-letters/discard",
    takes=DeadLettersRequest,
    gives={200: DeadLetterResults},
    problems=(422, 503),
)
async def discard_dead_letters(request: ApiRequest, hub: TheHub) -> ASGIApp:
    """Take dead letters off the list; the agents stay `failed`."""
    return await _each(request, hub, operate.discard)


async def _each(request: ApiRequest, hub: Hub, act: Callable[..., Any]) -> ASGIApp:
    wish = await read_body(request, DeadLettersRequest)
    if wish.all == bool(wish.agents):
        raise BadInputError("give `agents` (their ids) or `all: true`, and not both")
    caller = request.auth

    def use_case(connection: Connection, now_ms: int) -> tuple[DeadLetterResults, Nudges]:
        ids = wish.agents or [
            agent.id
            for agent in agents.page(
                connection, Filter(tenant=caller.tenant, dead=True), None, _MOST
            )
        ]
        done, nudges = act(
            connection, caller.tenant, ids, actor=caller.actor, reason=wish.reason, now_ms=now_ms
        )
        left = sum(agents.dead_counts(connection, caller.tenant).values())
        results = [DeadLetterResult(agent=agent, done=not why, reason=why) for agent, why in done]
        return DeadLetterResults(
            results=results, done=sum(r.done for r in results), left=left
        ), nudges

    return reply(await hub.do(use_case))


HANDLERS: Final = (list_dead_letters, requeue_dead_letters, discard_dead_letters)
