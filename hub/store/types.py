"""The catalogue of agent types."""

import msgspec
import sqlalchemy as sa

from hub.schemas import AgentType
from hub.store.tables import types
from shared.errors import NotFoundError

_encode = msgspec.json.Encoder().encode


def all(connection: sa.Connection) -> dict[str, AgentType]:  # noqa: A001 - read as `types.all`
    """Return the whole catalogue by name."""
    rows = connection.execute(sa.select(types.c.name, types.c.body).order_by(types.c.name))
    return {row.name: msgspec.json.decode(row.body, type=AgentType) for row in rows}


def put(connection: sa.Connection, kind: AgentType, now_ms: int) -> None:
    """Add a type or replace it: agents that were spawned before keep what they were spawned with."""
    connection.execute(sa.delete(types).where(types.c.name == kind.name))
    body = _encode(kind).decode()
    connection.execute(sa.insert(types).values(name=kind.name, body=body, updated_ms=now_ms))


def delete(connection: sa.Connection, name: str) -> None:
    """Remove a type; raises NotFoundError."""
    if connection.execute(sa.delete(types).where(types.c.name == name)).rowcount == 0:
        raise NotFoundError(f"no agent type `{name}`")
