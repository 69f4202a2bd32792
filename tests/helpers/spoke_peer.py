"""A scripted spoke: speaks the real wire with a real key, does what a test says, and can lie.

It keeps no queue: a test calls `hello`, `heartbeat`, `report` and looks at `commands`.
"""

import asyncio
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared import clock, subjects
from shared.bus import Bus
from shared.ids import sha256
from shared.keys import key_id
from shared.messages import (
    Command,
    Event,
    EventKind,
    Exit,
    ExitKind,
    Heartbeat,
    Hello,
    Kill,
    LogChunk,
    Offer,
    QueueCounts,
    Reply,
    SandboxKind,
    Spawn,
    SpokeHeader,
    Status,
    Tail,
    Welcome,
)
from shared.signers import Signer
from shared.trust import (
    HubTrust,
    Report,
    TrustedAnswer,
    TrustedItem,
    open_answer,
    open_command,
    seal_report,
)

NOTHING = "0" * 64


def offer(**changes: Any) -> Offer:
    values: dict[str, Any] = {
        "slots": 4, "prefetch": 8, "cap": 100, "kinds": (SandboxKind.BUBBLEWRAP, SandboxKind.SIMULATED), "mounts": (),
        "labels": {}, "lacks": (), "policy": NOTHING, "version": "test",
    }  # fmt: skip
    return Offer(**{**values, **changes})


class SpokePeer:
    """One scripted spoke on a bus."""

    def __init__(self, bus: Bus, name: str, signer: Signer, hub_key: Ed25519PublicKey) -> None:
        self.bus = bus
        self.name = name
        self.signer = signer
        self.federation = key_id(hub_key)
        self.trust = HubTrust(self.federation, "hub", name, 0, {key_id(hub_key): hub_key})
        self.incarnation = 0
        self.seq = 0
        self.counter = 0
        self.commands: asyncio.Queue[TrustedItem[Command]] = asyncio.Queue()
        self.envelopes: list[bytes] = []
        self.timeout_s = 2.0

    async def listen(self) -> None:
        async def on_command(_subject: str, data: bytes) -> None:
            self.envelopes.append(data)
            trust = HubTrust(self.federation, "hub", self.name, self.incarnation, self.trust.keys)
            for item in open_command(data, trust, clock.now_ms(), 0).items:
                self.commands.put_nowait(item)

        await self.bus.listen(subjects.commands(self.name), on_command)

    async def ask(self, items: list[Report], **header: Any) -> TrustedAnswer:
        values: dict[str, Any] = {
            "federation": self.federation, "iss": self.name, "inc": self.incarnation, "iat": clock.now_ms(),
        }  # fmt: skip
        request = seal_report(SpokeHeader(**{**values, **header}), items, self.signer)
        data = await self.bus.request(
            subjects.reports(self.name), request, timeout_s=self.timeout_s
        )
        return open_answer(data, request, self.trust)

    async def hello(self, **changes: Any) -> Welcome:
        hello = Hello(
            nonce=sha256(b"nonce"), incarnation=self.incarnation, head_seq=self.seq, inventory=NOTHING, versions=(1,),
            offer=offer(**changes),
        )  # fmt: skip
        answer = await self.ask([hello])
        assert isinstance(answer.item, Welcome)
        if answer.header.inc != self.incarnation:
            self.incarnation, self.seq = answer.header.inc, 0
        return answer.item

    async def heartbeat(self, *, full: bool = False, iat: int | None = None) -> TrustedAnswer:
        self.counter += 1
        counts = QueueCounts(queued=0, running=0, retrying=0, dead=0)
        beat = Heartbeat(
            counter=self.counter, head_seq=self.seq, counts=counts, full=full, paused=False, cordoned=False, rev=0,
            inventory=NOTHING, policy=NOTHING, trust_version=0, trouble="", refusals={},
        )  # fmt: skip
        return await self.ask([beat], **({} if iat is None else {"iat": iat}))

    def event(self, kind: EventKind, of: TrustedItem[Command], **changes: Any) -> Event:
        self.seq += 1
        agent, gen = (
            (of.item.agent, of.item.gen) if isinstance(of.item, Spawn | Kill) else (None, 0)
        )
        values: dict[str, Any] = {
            "seq": self.seq, "kind": kind, "cmd": of.item.id, "cmd_sha256": of.sha256, "agent": agent, "gen": gen,
            "attempt": 1, "fence": 1, "reason": "", "at": clock.now_ms(), "exit": None, "retry_at": None,
        }  # fmt: skip
        return Event(**{**values, **changes})

    def succeeded(self, of: TrustedItem[Command]) -> list[Event]:
        end = Exit(kind=ExitKind.EXITED, code=0, started_ms=1, ended_ms=2)
        return [
            self.event(EventKind.QUEUED, of),
            self.event(EventKind.RUNNING, of),
            self.event(EventKind.SUCCEEDED, of, exit=end),
        ]

    async def next_command(self) -> TrustedItem[Command]:
        async with asyncio.timeout(5):
            return await self.commands.get()

    async def answer(
        self, query: Status | Tail, *items: Reply | LogChunk, by: Signer | None = None
    ) -> None:
        """Publish a reply or chunks of output to the reader that asked; each chunk in an envelope of its own."""
        header = SpokeHeader(
            federation=self.federation, iss=self.name, inc=self.incarnation, iat=clock.now_ms()
        )
        for item in items:
            data = seal_report(header, [item], by or self.signer)
            await self.bus.publish(subjects.logs(self.name, query.reader), data)
