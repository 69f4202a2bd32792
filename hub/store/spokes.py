"""Spokes: who may speak, what they offered, and when they were last heard."""

from typing import Any

import msgspec
import sqlalchemy as sa

from hub.store import bulk
from hub.store.tables import exclusions, spokes
from shared.errors import NotFoundError
from shared.messages import Heartbeat, Offer

_encode = msgspec.json.Encoder().encode
_COLUMNS = tuple(column.name for column in spokes.columns)
_decode_offer = msgspec.json.Decoder(Offer).decode
_decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode


class Spoke(msgspec.Struct, frozen=True, kw_only=True):
    """One row, decoded; `offer` is None until the spoke's first hello."""

    id: str
    connection: str
    key_id: str
    incarnation: int
    evt_ack: int
    offer: Offer | None
    heartbeat: Heartbeat | None
    heartbeat_counter: int
    hello_ms: int
    seen_ms: int | None
    skew_ms: int | None
    is_full: bool
    rev: int
    paused: bool
    cordoned: bool

    @property
    def trouble(self) -> str:
        """What its last heartbeat said is wrong at its site, empty while all is well."""
        return self.heartbeat.trouble if self.heartbeat is not None else ""

    def is_online(self, now_ms: int, suspect_ms: int) -> bool:
        return self.seen_ms is not None and now_ms - self.seen_ms < suspect_ms


def all(connection: sa.Connection) -> list[Spoke]:  # noqa: A001 - read as `spokes.all`
    """Return every spoke, by id."""
    return [_spoke(row) for row in connection.exec_driver_sql(f"{_SELECT} ORDER BY id")]


def find(connection: sa.Connection, spoke_id: str) -> Spoke:
    """Return one spoke; raises NotFoundError."""
    row = connection.exec_driver_sql(f"{_SELECT} WHERE id = ?", (spoke_id,)).first()
    if row is None:
        raise NotFoundError(f"no spoke `{spoke_id}`; see GET /v1/spokes")
    return _spoke(row)


def admit(connection: sa.Connection, spoke_id: str, key_id: str) -> None:
    """Enter a spoke whose key is pinned, or its new key."""
    row = {
        "id": spoke_id, "connection": "active", "key_id": key_id, "incarnation": 0, "evt_ack": 0, "offer": "",
        "heartbeat": None, "heartbeat_counter": 0, "hello_ms": 0, "seen_ms": None, "skew_ms": None, "is_full": False, "rev": 0,
        "paused": False, "cordoned": False,
    }  # fmt: skip
    known = connection.execute(sa.select(spokes.c.key_id).where(spokes.c.id == spoke_id)).scalar()
    if known is None:
        connection.execute(sa.insert(spokes).values(row))
    elif known != key_id:
        connection.execute(sa.update(spokes).where(spokes.c.id == spoke_id).values(key_id=key_id))


def note_hello(
    connection: sa.Connection,
    spoke_id: str,
    offer: Offer,
    *,
    incarnation: int,
    evt_ack: int,
    heartbeat_counter: int,
    hello_ms: int,
    now_ms: int,
) -> None:
    """Keep what a spoke offers, where its journal stands and how its clock does."""
    values = {
        "incarnation": incarnation,
        "evt_ack": evt_ack,
        "offer": _encode(offer).decode(),
        "heartbeat_counter": heartbeat_counter,
        "hello_ms": hello_ms,
        "skew_ms": hello_ms - now_ms,
        "seen_ms": now_ms,
    }
    connection.execute(sa.update(spokes).where(spokes.c.id == spoke_id).values(values))


def note_heartbeat(
    connection: sa.Connection, spoke: Spoke, heartbeat: Heartbeat, skew_ms: int, now_ms: int
) -> None:
    """Keep the newest heartbeat; one that shows room ends `is_full`."""
    query = "UPDATE spokes SET heartbeat = ?, heartbeat_counter = ?, skew_ms = ?, seen_ms = ?, is_full = ? WHERE id = ?"
    values = (
        _encode(heartbeat).decode(),
        heartbeat.counter,
        skew_ms,
        now_ms,
        heartbeat.full,
        spoke.id,
    )
    connection.exec_driver_sql(query, values)


def note_events(connection: sa.Connection, spoke_id: str, evt_ack: int, now_ms: int) -> None:
    """Everything up to `evt_ack` is committed with this transaction."""
    connection.exec_driver_sql(
        "UPDATE spokes SET evt_ack = ?, seen_ms = ? WHERE id = ?", (evt_ack, now_ms, spoke_id)
    )


def note_full(connection: sa.Connection, spoke_id: str) -> None:
    """The spoke said `queue_full`: no credit until a later heartbeat shows room."""
    connection.exec_driver_sql("UPDATE spokes SET is_full = 1 WHERE id = ?", (spoke_id,))


def want(connection: sa.Connection, spoke_id: str, *, paused: bool) -> int:
    """Set the wanted state; returns its revision."""
    connection.execute(
        sa.update(spokes)
        .where(spokes.c.id == spoke_id)
        .values(paused=paused, rev=spokes.c.rev + 1)
    )
    return connection.execute(sa.select(spokes.c.rev).where(spokes.c.id == spoke_id)).scalar_one()


def exclude(connection: sa.Connection, pairs: list[tuple[str, str, str, str]]) -> None:
    """Keep that a spoke's policy refused an agent: (agent, spoke, policy digest, reason)."""
    for agent, spoke, policy, reason in pairs:
        same = (exclusions.c.agent == agent, exclusions.c.spoke == spoke)
        connection.execute(sa.delete(exclusions).where(*same))
        row = {"agent": agent, "spoke": spoke, "policy": policy, "reason": reason}
        connection.execute(sa.insert(exclusions).values(row))


def exclusions_of(
    connection: sa.Connection, agents: list[str]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (agent, spoke) → (policy digest, reason) for these agents."""
    query = "SELECT agent, spoke, policy, reason FROM exclusions WHERE agent IN (SELECT value FROM json_each(?))"
    rows = connection.exec_driver_sql(query, (bulk.texts(agents),))
    return {(agent, spoke): (policy, reason) for agent, spoke, policy, reason in rows}


def _spoke(row: sa.Row[Any]) -> Spoke:
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    values["offer"] = _decode_offer(values["offer"]) if values["offer"] else None
    values["heartbeat"] = _decode_heartbeat(values["heartbeat"]) if values["heartbeat"] else None
    for flag in ("is_full", "paused", "cordoned"):
        values[flag] = bool(values[flag])
    return Spoke(**values)


_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM spokes"  # noqa: S608 - our names
