"""Names of things that both sides use, and how new ones are made.

Names that people choose (spokes, tenants, agent types, mounts) match `NAME`; ids that Felloe makes
(agents, commands) are UUIDv7, so that they sort by the time they were made.
"""

import hashlib
import os
from typing import Annotated, Final, NewType

from msgspec import Meta

AgentId = NewType("AgentId", str)
CommandId = NewType("CommandId", str)
KeyId = NewType("KeyId", str)
SpokeId = NewType("SpokeId", str)
Tenant = NewType("Tenant", str)

# Lower case, so that an id can be a NATS token, a DNS label and a folder; `(?!\n)` because Python's `$`
# also matches before a final newline.
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)"
UUID7_PATTERN: Final = (
    r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$(?!\n)"
)
SHA256_PATTERN: Final = r"^[0-9a-f]{64}$(?!\n)"

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Uuid7 = Annotated[str, Meta(pattern=UUID7_PATTERN)]
Sha256 = Annotated[str, Meta(pattern=SHA256_PATTERN)]

# RFC 9562 leaves the 12 bits of `rand_a` to the maker: here they number the ids of one batch.
_BATCH: Final = 1 << 12


def uuid7(now_ms: int) -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7) for the Unix time `now_ms`, in milliseconds."""
    return uuid7s(now_ms, 1)[0]


def uuid7s(now_ms: int, count: int) -> list[str]:
    """Return `count` new UUIDv7 that sort in the order of the list; past 4,096 they borrow the next ms."""
    noise = os.urandom(8 * count)
    ids: list[str] = []
    for n in range(count):
        ms, within = now_ms + n // _BATCH, n % _BATCH
        tail = int.from_bytes(noise[8 * n : 8 * n + 8]) & ((1 << 62) - 1) | (1 << 63)
        digits = f"{ms:012x}7{within:03x}{tail:016x}"
        ids.append("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))
    return ids


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()
