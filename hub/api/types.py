"""The catalogue of agent types."""

from collections.abc import Callable
from typing import Final

from litestar.types import ASGIApp
from sqlalchemy import Connection

from hub.api.auth import Caller
from hub.api.operation import ApiRequest, Segment, TheHub, operation, read_body, reply, reply_bytes
from hub.control.hub import Hub
from hub.control.nudges import NOTHING, Nudges
from hub.schemas import AgentType, TypesView
from hub.store import audit, types
from shared.errors import BadInputError, NotFoundError


@operation("GET", "/v1/types", gives={200: TypesView})
async def list_types(hub: TheHub) -> ASGIApp:
    """List the agent types, by name."""
    return reply(TypesView(types=sorted(hub.types.values(), key=lambda kind: kind.name)))


@operation("GET", "/v1/types/{name:str}", gives={200: AgentType}, problems=(404,))
async def show_type(hub: TheHub, name: Segment) -> ASGIApp:
    """Show one agent type."""
    kind = hub.types.get(name)
    if kind is None:
        raise NotFoundError(f"no agent type `{name}`; see GET /v1/types")
    return reply(kind)


@operation(
    "PUT", "/v1/types/{name:str}", takes=AgentType, gives={200: AgentType}, problems=(422, 503)
)
async def put_type(request: ApiRequest, hub: TheHub, name: Segment) -> ASGIApp:
    """Add an agent type or replace it; agents that were spawned before keep what they were spawned with."""
    kind = await read_body(request, AgentType)
    if kind.name != name:
        raise BadInputError(f"the body describes `{kind.name}`, the path says `{name}`")
    await _change(
        hub, request.auth, "put_type", name, lambda c, now_ms: types.put(c, kind, now_ms)
    )
    return reply(kind)


@operation("DELETE", "/v1/types/{name:str}", gives={204: None}, problems=(404, 503))
async def delete_type(request: ApiRequest, hub: TheHub, name: Segment) -> ASGIApp:
    """Delete an agent type; its agents go on."""
    await _change(hub, request.auth, "delete_type", name, lambda c, _: types.delete(c, name))
    return reply_bytes(b"", "", 204)


async def _change(
    hub: Hub, caller: Caller, action: str, name: str, change: Callable[[Connection, int], None]
) -> None:
    def use_case(connection: Connection, now_ms: int) -> tuple[None, Nudges]:
        change(connection, now_ms)
        entry = audit.Entry(
            tenant=caller.tenant,
            actor=caller.actor,
            action=action,
            object=f"type:{name}",
            result="done",
        )
        audit.append(connection, [entry], now_ms)
        return None, NOTHING

    await hub.do(use_case)
    await hub.reload_types()


HANDLERS: Final = (list_types, show_type, put_type, delete_type)
