"""A hub in one file, for the tests of a spoke: it signs what it is told to sign, and it can lie.

It holds a real hub key and knows the spoke's public one, answers hello, events and heartbeats with signed answers,
and keeps everything that it was sent. How it misbehaves is set by its public fields: it may fall silent, give any
verdict, answer under another key or to another request. Nothing here is durable: a test is its lifetime.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared import subjects
from shared.bus import Bus
from shared.clock import now_ms
from shared.ids import uuid7
from shared.keys import key_id, new_key_pair, read_public_key
from shared.messages import (
    Ack,
    AgentSpec,
    AnswerHeader,
    Command,
    CommandHeader,
    Event,
    EventKind,
    Heartbeat,
    Hello,
    Kill,
    Limits,
    LogChunk,
    LogKind,
    LogStream,
    Network,
    OnLost,
    OnPartition,
    Purpose,
    Reply,
    SandboxKind,
    Simulation,
    Spawn,
    Status,
    Stderr,
    Tail,
    Verdict,
    Welcome,
)
from shared.signers import KeySigner
from shared.trust import (
    REQUESTS,
    TO_READER,
    SpokeTrust,
    TrustedReport,
    batches,
    encode_item,
    federation_of,
    open_report,
    seal_answer,
    seal_commands,
)

READER = "reader-1"
TERMINAL = frozenset(
    {EventKind.SUCCEEDED, EventKind.FAILED, EventKind.KILLED, EventKind.EXPIRED, EventKind.REFUSED}
)
_T = TypeVar("_T")


def agent_spec(*command: str, **changes: Any) -> AgentSpec:
    """Return a small spec for bubblewrap; without a command a `simulated` one that ends at once."""
    plain = AgentSpec(
        type="",
        command=command,
        env={},
        input="",
        sandbox=SandboxKind.BUBBLEWRAP if command else SandboxKind.SIMULATED,
        network=Network.NONE,
        mounts=(),
        limits=Limits(),
        priority=5,
        arrived_ms=now_ms(),
        deadline_ms=None,
        timeout_ms=None,
        grace_ms=10_000,
        max_retries=0,
        on_lost=OnLost.WAIT,
        on_partition=OnPartition.CONTINUE,
        stderr=Stderr.MERGED,
        handles_sigterm=False,
        weight=1,
        simulation=None if command else Simulation(),
    )
    return msgspec.structs.replace(plain, **changes)


def spawn(
    spec: AgentSpec, *, agent: str | None = None, gen: int = 1, tenant: str = "default"
) -> Spawn:
    now = now_ms()
    return Spawn(
        id=uuid7(now),
        actor="test",
        tenant=tenant,
        trace="",
        agent=agent or uuid7(now),
        gen=gen,
        spec=spec,
    )


def kill(
    agent: str, *, gen: int = 1, grace_ms: int | None = None, reason: str = "by a test"
) -> Kill:
    return Kill(
        id=uuid7(now_ms()),
        actor="test",
        tenant="default",
        trace="",
        agent=agent,
        gen=gen,
        grace_ms=grace_ms,
        reason=reason,
    )


def status(agent: str, *, gen: int = 1, reader: str = READER) -> Status:
    return Status(
        id=uuid7(now_ms()),
        actor="test",
        tenant="default",
        trace="",
        agent=agent,
        gen=gen,
        reader=reader,
    )


def tail(agent: str, *, gen: int = 1, **changes: Any) -> Tail:
    plain = Tail(
        id=uuid7(now_ms()),
        actor="test",
        tenant="default",
        trace="",
        agent=agent,
        gen=gen,
        attempt=1,
        offset=0,
        lease_ms=30_000,
        follow=True,
        reader=READER,
    )
    return msgspec.structs.replace(plain, **changes)


class HubPeer:
    """A scripted hub for one spoke. Made by `open`, ended by `close`."""

    def __init__(self, bus: Bus, folder: Path, spoke: str) -> None:
        self.bus = bus
        self.spoke = spoke
        self.signer = KeySigner.from_file(folder / "hub.key", "hub")
        self.federation = federation_of(self.signer.public)
        spoke_key = read_public_key(folder / f"{spoke}.key.pub", "spoke")
        self._trust = SpokeTrust(self.federation, spoke, {key_id(spoke_key): spoke_key})
        self.incarnation = 0
        self.evt_ack = 0
        self.hellos: list[Hello] = []
        self.heartbeats: list[Heartbeat] = []
        self.events: list[Event] = []  # each seq once, in order
        self.batches: list[tuple[int, int]] = []  # (first seq, count) of everything that came
        self.replies: list[Reply] = []
        self.chunks: list[LogChunk] = []
        self.refused: list[str] = []  # what did not verify
        # How it misbehaves.
        self.silent = False
        self.withholds = False  # takes events, and acknowledges none
        self.verdict: Verdict | None = None  # the next hello's; then as usual
        self.answer_signer: KeySigner | None = None
        self.answer_re: str | None = None
        self._changed = asyncio.Condition()

    @staticmethod
    def make_keys(folder: Path, spoke: str = "zurich") -> None:
        """Write the key files of both sides: `hub.key`, `<spoke>.key`, each with `.pub`."""
        new_key_pair(folder / "hub.key", "hub")
        new_key_pair(folder / f"{spoke}.key", "spoke")

    @classmethod
    async def open(cls, url: str, folder: Path, spoke: str = "zurich") -> "HubPeer":
        bus = await Bus.connect(url, name="hub-peer", user="", password="")
        peer = cls(bus, folder, spoke)
        await bus.listen(subjects.ALL_REPORTS, peer._on_report, group=subjects.HUB_QUEUE_GROUP)
        await bus.listen(subjects.logs_for(READER), peer._on_reader)
        return peer

    async def close(self) -> None:
        await self.bus.close()

    # --- what it says ----------------------------------------------------------------------------

    def seal(self, *items: Command, signer: KeySigner | None = None, **header: Any) -> bytes:
        """Return one signed envelope; `header` changes fields of an honest one."""
        now = now_ms()
        honest = CommandHeader(
            federation=self.federation,
            iss="hub",
            aud=self.spoke,
            inc=self.incarnation,
            iat=now,
            exp=now + 60_000,
            hub_epoch=1,
            evt_ack=self.evt_ack,
        )
        changed = msgspec.structs.replace(honest, **header)
        return seal_commands(changed, [encode_item(item) for item in items], signer or self.signer)

    async def send(self, *items: Command) -> bytes:
        """Send honest commands, as few envelopes as they fit in; returns the last envelope."""
        envelope = b""
        by_bytes = {encode_item(item): item for item in items}
        for group in batches(list(by_bytes)):
            envelope = self.seal(*(by_bytes[raw] for raw in group))
            await self.send_raw(envelope)
        return envelope

    async def send_raw(self, envelope: bytes) -> None:
        await self.bus.publish(subjects.commands(self.spoke), envelope)

    # --- what it hears ---------------------------------------------------------------------------

    async def wait_for(
        self, find: Callable[["HubPeer"], _T | None], what: str, *, timeout_s: float = 10.0
    ) -> _T:
        """Return what `find` finds first, neither None nor False; fails, saying `what` was missing."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                while True:
                    found = find(self)
                    if found is not None and found is not False:
                        return found
                    await self._changed.wait()
        except TimeoutError:
            kinds = [f"{e.kind}:{e.reason}" for e in self.events[-8:]]
            raise AssertionError(
                f"no {what} within {timeout_s} s; events {kinds}; batches {self.batches[-4:]}; "
                f"refused {self.refused}; last heartbeat {self.heartbeats[-1:]}"
            ) from None

    async def event(self, agent: str, *kinds: EventKind, timeout_s: float = 10.0) -> Event:
        """Return the first event of one of `kinds` about `agent`; by default of any outcome."""
        wanted = frozenset(kinds) or TERMINAL

        def find(peer: "HubPeer") -> Event | None:
            return next((e for e in peer.events if e.agent == agent and e.kind in wanted), None)

        return await self.wait_for(find, f"event {sorted(wanted)}", timeout_s=timeout_s)

    def kinds(self, agent: str) -> list[EventKind]:
        """Return the kinds of all events about `agent`, in their order."""
        return [event.kind for event in self.events if event.agent == agent]

    def output(self, agent: str, stream: LogStream = LogStream.OUT) -> bytes:
        """Return the data of all chunks of `agent`, in the order of their coming."""
        data = (c for c in self.chunks if c.agent == agent and c.kind is LogKind.DATA)
        return b"".join(chunk.data for chunk in data if chunk.stream is stream)

    async def _on_report(self, _subject: str, data: bytes) -> bytes | None:
        try:
            report = open_report(data, REQUESTS, self._trust)
        except Exception as error:  # noqa: BLE001 - a test looks at what was refused
            self.refused.append(str(error))
            return None
        if self.silent:
            return None
        answer = self._take(report)
        async with self._changed:
            self._changed.notify_all()
        return answer

    def _take(self, report: TrustedReport) -> bytes:
        first = report.items[0]
        if isinstance(first, Hello):
            return self._welcome(first, report)
        for item in report.items:
            if isinstance(item, Heartbeat):
                self.heartbeats.append(item)
            elif isinstance(item, Event) and item.seq == self.evt_ack + 1:
                self.events.append(item)
                self.evt_ack = item.seq
        if report.purpose is Purpose.EVENT and isinstance(first, Event):
            self.batches.append((first.seq, len(report.items)))
        return self._answer(report, Ack(witness=None))

    def _welcome(self, hello: Hello, report: TrustedReport) -> bytes:
        self.hellos.append(hello)
        verdict, self.verdict = self.verdict, None
        if verdict is None:
            known = hello.incarnation == self.incarnation and self.incarnation > 0
            verdict = Verdict.GO_ON if known else Verdict.NEW_INCARNATION
        if verdict is Verdict.NEW_INCARNATION:
            self.incarnation = max(self.incarnation, hello.incarnation) + 1
            self.evt_ack = 0
        item = Welcome(nonce=hello.nonce, verdict=verdict, version=1, witness=None)
        return self._answer(report, item)

    def _answer(self, report: TrustedReport, item: Ack | Welcome) -> bytes:
        header = AnswerHeader(
            federation=self.federation,
            iss="hub",
            aud=self.spoke,
            inc=self.incarnation,
            iat=now_ms(),
            hub_epoch=1,
            evt_ack=0 if self.withholds else self.evt_ack,
            re=self.answer_re or report.sha256,
        )
        return seal_answer(header, item, self.answer_signer or self.signer)

    async def _on_reader(self, _subject: str, data: bytes) -> None:
        report = open_report(data, TO_READER, self._trust)
        self.replies.extend(item for item in report.items if isinstance(item, Reply))
        self.chunks.extend(item for item in report.items if isinstance(item, LogChunk))
        async with self._changed:
            self._changed.notify_all()


def stranger() -> KeySigner:
    """Return a signer that nobody pinned."""
    return KeySigner(Ed25519PrivateKey.generate())
