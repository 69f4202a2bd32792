"""Every key of a spoke's queue, spelled once and given to the scripts as Lua constants.

All keys share the hash tag `{<spoke>}`, so that a cluster keeps them on one shard and a script may touch them all.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shared.ids import NAME_PATTERN

# Lua constant → the key's last part. Those that end in `:` are completed by the scripts.
KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "META": "meta",  # hash: epoch, host, incarnation, seq, evt_ack, rev, paused, cordoned, fence, newest
        "ENTRY": "entry:",  # + agent → hash: one agent that is here, from acceptance to outcome
        "GENS": "gens",  # hash: agent → generation, of every entry
        "READY": "ready:",  # + tenant:priority → sorted set: agent by arrival; its head is first come
        "DELAYED": "delayed",  # sorted set: agent by retry_at
        "DEADLINES": "deadlines",  # sorted set: agent by deadline, of those that never started
        "LEASED": "leased",  # sorted set: agent by fence
        "ACTIVE": "active",  # sorted set: tenant by virtual time, of those with something ready
        "IDLE": "idle",  # sorted set: tenant by virtual time, of those without, while others are active
        "INBOX": "inbox",  # hash: command id → SHA-256 of the item, event not acknowledged
        "CLOSED": "closed",  # hash: agent → "<generation>:<how>", event not acknowledged
        "EQUIVOCATED": "equivocated",  # set: command ids whose equivocation is said and not acknowledged
        "PAST": "past:",  # + minute → hash: acknowledged inbox ids and closed marks, expiring whole
        "EVENTS": "events",  # stream <seq>-0: what the hub has not acknowledged
        "DEAD": "dead",  # stream <seq>-0: dead letters that the hub has not acknowledged
    }
)


def root(spoke: str) -> str:
    """Return what all keys of this spoke begin with; raises ValueError for what is no spoke id."""
    if not re.match(NAME_PATTERN, spoke):
        raise ValueError(f"not a spoke id: {spoke!r}")
    return f"felloe:{{{spoke}}}:"


def key(spoke: str, name: str) -> str:
    """Return the whole key for one of the constants in `KEYS`."""
    return root(spoke) + KEYS[name]


def as_lua(spoke: str) -> str:
    """Return the Lua lines that define the constants; an id holds nothing that would need quoting."""
    return "".join(f"local {name} = '{key(spoke, name)}'\n" for name in KEYS)
