"""Dispatch: what waits in the outbox for one spoke → header and items → signed → NATS.

No timer: a commit that is under way is what groups the rows that come meanwhile. The proof (hash of each envelope) is
committed before anything is published, so nothing leaves the hub that it cannot show later. Kills go in envelopes of
their own. A spoke that is not heard of gets nothing until its next hello; its rows wait.
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from hub.store import facts, outbox, spokes
from hub.store.outbox import Due
from hub.store.spokes import Spoke
from shared.ids import sha256
from shared.messages import MAX_ITEMS, AnswerHeader, CommandHeader
from shared.signers import Signer
from shared.trust import Answer, batches, seal_answer, seal_commands


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What makes this hub's signature: its id, federation and key, and how long a command may be acted on."""

    hub: str
    federation: str
    signer: Signer
    command_ms: int


class Dispatch(msgspec.Struct, frozen=True):
    """Envelopes to publish, and in how many ms to look again (None: nothing waits)."""

    envelopes: list[bytes]
    wait_ms: int | None


def dispatch(
    connection: sa.Connection, spoke_id: str, seal: Seal, now_ms: int, suspect_ms: int
) -> Dispatch:
    """Seal what is due for a spoke and set when it would be sent again."""
    spoke = spokes.find(connection, spoke_id)
    if not spoke.is_online(now_ms, suspect_ms) or spoke.connection != "active":
        return Dispatch([], None)
    rows = outbox.due(connection, spoke_id, now_ms, MAX_ITEMS)
    header = command_header(connection, spoke, seal, now_ms)
    envelopes: list[bytes] = []
    proofs: list[tuple[str, list[str]]] = []
    for group in (_only(rows, kills=True), _only(rows, kills=False)):
        ids = iter([row.id for row in group])
        for items in batches([row.item.encode() for row in group]):
            envelope = seal_commands(header, items, seal.signer)
            envelopes.append(envelope)
            proofs.append((sha256(envelope), [next(ids) for _ in items]))
    outbox.note_sent(connection, spoke_id, proofs, rows, now_ms)
    next_ms = outbox.next_due_ms(connection, spoke_id)
    return Dispatch(envelopes, None if next_ms is None else max(0, next_ms - now_ms))


def command_header(
    connection: sa.Connection, spoke: Spoke, seal: Seal, now_ms: int
) -> CommandHeader:
    """Return the header of a command to a spoke, as the database stands."""
    return CommandHeader(
        federation=seal.federation,
        iss=seal.hub,
        aud=spoke.id,
        inc=spoke.incarnation,
        iat=now_ms,
        exp=now_ms + seal.command_ms,
        hub_epoch=facts.hub_epoch(connection),
        evt_ack=spoke.evt_ack,
    )


def answer(
    connection: sa.Connection, spoke: Spoke, item: Answer, *, re: str, seal: Seal, now_ms: int
) -> bytes:
    """Return the signed answer to the request whose envelope hashes to `re`."""
    header = AnswerHeader(
        federation=seal.federation,
        iss=seal.hub,
        aud=spoke.id,
        inc=spoke.incarnation,
        iat=now_ms,
        hub_epoch=facts.hub_epoch(connection),
        evt_ack=spoke.evt_ack,
        re=re,
    )
    return seal_answer(header, item, seal.signer)


def _only(rows: Sequence[Due], *, kills: bool) -> list[Due]:
    return [row for row in rows if (row.op == "kill") is kills]
