"""A spoke's local queue: thin Python around the Lua scripts, where every move happens as one.

    take_over → intake → lease → started → finish ┬→ outcome: event, closed mark
                             ▲         └→ hand_back┤
                             └────── retrying ◀────┘        events → (the hub commits them) → acknowledge

One daemon owns a queue. `take_over` gives it an epoch, and every call says that epoch, the incarnation and the newest
event it knows of: a daemon that was replaced, and one whose server lost or rewound its contents, gets a FencedError
before anything is written. `now_ms` never goes back, whatever the host's clock does.

A call whose answer was lost (UnavailableError, cancellation) may have had its effect. So each one is safe to repeat:
intake finds duplicates, `started` has no second effect, `finish` and `hand_back` answer False, and `lease` hands out
again what did not reach us, since it says the highest fence that did.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from shared.clock import boot_ms
from shared.envelope import Refusal
from shared.errors import ConfigError
from shared.messages import Command, Event, Kill, QueueCounts
from shared.trust import TrustedItem
from spoke.queue import names
from spoke.queue.entries import (
    End,
    Entry,
    EventFields,
    Lease,
    Leased,
    LeasedFields,
    LeaseFields,
    Note,
    Taken,
    Verdict,
    check_end,
    pack_items,
)
from spoke.queue.scripts import INTAKE_OF_KILLS, load
from spoke.queue.server import Server

T = TypeVar("T")

# Intake stops here, so that what was accepted has room to end (`architecture.md`, "Queue keys").
_ALMOST_FULL: Final = 0.8
_MEMORY_LOOK_MS: Final = 1_000
# Events that one call of the acknowledge script looks at: some milliseconds in which nothing else is served.
_ACKNOWLEDGED_AT_ONCE: Final = 1_000

_pack = msgspec.msgpack.Encoder().encode


class Queue:
    """The queue of one spoke. Built by `open`, owned after `take_over`, ended by `close`.

    Every method is one round trip and atomic, may be cancelled and repeated, and raises FencedError (stop, touch
    nothing) or UnavailableError (the effect is unknown, nothing was lost).
    """

    def __init__(self, server: Server, spoke: str) -> None:
        self._server = server
        self._scripts = load(spoke)
        self._key = names.key(spoke, "META")
        self._epoch = 0
        self._incarnation = 0
        self._head_seq = 0
        self._fence = 0
        self._leasing = asyncio.Lock()
        self._memory_looked_ms = -_MEMORY_LOOK_MS
        self._is_almost_full = False

    @classmethod
    async def open(cls, url: str, spoke: str, *, allow_volatile: bool) -> "Queue":
        """Return once Valkey answers; waits, logging, until then.

        Raises ConfigError for a server that is too old, evicts, or (unless `allow_volatile`) does not fsync every
        write.
        """
        return cls(await Server.open(url, allow_volatile=allow_volatile), spoke)

    @property
    def head_seq(self) -> int:
        """The newest event that this daemon knows of, as of its last call."""
        return self._head_seq

    async def take_over(self, *, host: str, epoch: int, incarnation: int, now_ms: int) -> Taken:
        """Own the queue: every other daemon is fenced out from here on.

        `epoch` is the least that will do (the state folder's + 1); the one taken is also above the queue's own.
        `incarnation` is for a queue without contents; one with contents keeps its own. Raises ConfigError when the
        queue belongs to another host, whose sandboxes cannot be seen from here.
        """
        request = {"host": host, "epoch": epoch, "incarnation": incarnation}
        taken, _ = await self._call("take_over", Taken, request, now_ms)
        if taken.host != host:
            raise ConfigError(f"this queue belongs to host {taken.host}, and this is {host}")
        self._epoch, self._fence = taken.epoch, taken.fence
        self._incarnation, self._head_seq = taken.incarnation, taken.head_seq
        return taken

    async def intake(
        self,
        items: Sequence[TrustedItem[Command]],
        *,
        refused: Mapping[str, tuple[Refusal, str]],
        full: bool,
        cap: int,
        now_ms: int,
    ) -> list[Verdict]:
        """Take in one envelope's items, in their order, and return a verdict for each.

        `refused` is the gate's no by command id; spawns are refused as `queue_full` when `full`, or when `cap`
        entries wait. Raises ValueError for a query. Kills need no room; other items raise UnavailableError when
        Valkey has none left, and nothing of the envelope was taken in.
        """
        packed, raws = pack_items(items, refused)
        script = (
            INTAKE_OF_KILLS if all(isinstance(each.item, Kill) for each in items) else "intake"
        )
        request = {"items": packed, "full": full, "cap": cap}
        verdicts, _ = await self._call(script, list[Verdict], request, now_ms, raws)
        return verdicts

    async def lease(self, count: int, now_ms: int) -> Leased:
        """Lease up to `count` attempts, whose turn it is; before that, retries come back and deadlines expire.

        Fair share between tenants, then effective priority with ageing, then first come. Nothing new while paused.
        May return more than `count` after a call whose answer was lost. To be called at least every second.
        """
        async with self._leasing:
            request = {"count": count, "after": self._fence}
            found, items = await self._call("lease", LeasedFields, request, now_ms)
            leases = _with_items(found.leases, items)
            self._fence = max([self._fence, *(lease.fence for lease in leases)])
            return Leased(leases=leases, next_due_ms=found.next_due_ms)

    async def started(self, notes: Sequence[Note], now_ms: int) -> list[bool]:
        """Say that attempts run; False where the fence is stale."""
        results, _ = await self._call("started", list[bool], notes, now_ms)
        return results

    async def finish(self, ends: Sequence[End], now_ms: int) -> list[bool]:
        """End attempts; False, and nothing written, where the fence is stale. Raises ValueError for no end.

        An attempt that is to be retried although a kill came in the meantime ends as killed.
        """
        request = [check_end(end) for end in ends]
        results, _ = await self._call("finish", list[bool], request, now_ms)
        return results

    async def hand_back(self, notes: Sequence[Note], now_ms: int) -> list[bool]:
        """Return attempts that are proven never to have run to their place, uncounted; False where stale."""
        results, _ = await self._call("hand_back", list[bool], notes, now_ms)
        return results

    async def leased(self) -> list[Lease]:
        """Return everything under a lease, by rising fence: what a new daemon reconciles."""
        found, items = await self._call("leased", list[LeaseFields])
        return _with_items(found, items)

    async def events(self, after: int, count: int) -> list[Event]:
        """Return up to `count` events with a higher seq than `after`, ascending."""
        _, packed = await self._call("events", int, {"after": after, "count": count})
        return [_decode_event(each).as_event() for each in packed]

    async def acknowledge(self, evt_ack: int, now_ms: int) -> None:
        """Drop what the hub has committed, of this incarnation only. A lower or an impossible one has no effect."""
        reached = 0
        while reached < evt_ack:
            request = {"evt_ack": evt_ack, "most": _ACKNOWLEDGED_AT_ONCE}
            reached, _ = await self._call("acknowledge", int, request, now_ms)

    async def counts(self) -> QueueCounts:
        """Return how many entries are in which state, and the unacknowledged dead letters."""
        counts, _ = await self._call("counts", QueueCounts)
        return counts

    async def look(self, agent: str) -> Entry | None:
        """Return what the queue knows of an agent, None when it is not here (any more)."""
        found, _ = await self._call("look", list[Entry], {"agent": agent})
        return found[0] if found else None

    async def inventory(self) -> str:
        """Return SHA-256 over the sorted lines `agent:generation` of everything that is not closed."""
        flat, _ = await self._call("inventory", list[str])
        return digest_inventory(dict(zip(flat[::2], map(int, flat[1::2]), strict=True)))

    async def restart_journal(self, incarnation: int, now_ms: int) -> None:
        """Begin a new incarnation: what holds no lease is dropped, and events start from 1 again.

        What holds a lease stays and is to be said again (`started`). The same or a lower incarnation has no effect.
        """
        await self._call("restart_journal", bool, {"incarnation": incarnation}, now_ms)

    async def almost_full(self) -> bool:
        """Tell whether 80 % of `maxmemory` is used; False without one. Looked at once a second."""
        now = boot_ms()
        if now - self._memory_looked_ms >= _MEMORY_LOOK_MS:
            memory = await self._server.info("memory")
            most = int(memory.get("maxmemory", 0))
            self._is_almost_full = most > 0 and int(memory["used_memory"]) >= _ALMOST_FULL * most
            self._memory_looked_ms = now
        return self._is_almost_full

    async def close(self) -> None:
        """Wait for the calls under way, then disconnect. The queue stays ours until another daemon takes over."""
        await self._server.close()

    async def _call(
        self,
        name: str,
        kind: type[T],
        request: Any = None,
        now_ms: int = 0,
        raws: Sequence[bytes] = (),
    ) -> tuple[T, list[bytes]]:
        """Run a script and return its result and the byte strings beside it."""
        view = [self._epoch, self._incarnation, self._head_seq, now_ms, _pack(request)]
        incarnation, head_seq, packed, *more = await self._server.run(
            self._scripts[name], self._key, [*view, *raws]
        )
        self._learn(incarnation, head_seq)
        return msgspec.msgpack.decode(packed, type=kind), more

    def _learn(self, incarnation: int, head_seq: int) -> None:
        """Answers may overtake each other: only what is newer counts."""
        if incarnation > self._incarnation:
            self._incarnation, self._head_seq = incarnation, head_seq
        elif incarnation == self._incarnation:
            self._head_seq = max(self._head_seq, head_seq)


def digest_inventory(gens: Mapping[str, int]) -> str:
    """Return the digest over agent → generation that hub and spoke compare."""
    lines = "\n".join(sorted(f"{agent}:{gen}" for agent, gen in gens.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


_decode_event = msgspec.msgpack.Decoder(EventFields).decode


def _with_items(found: Sequence[LeaseFields], items: Sequence[bytes]) -> list[Lease]:
    return [fields.with_item(item) for fields, item in zip(found, items, strict=True)]
