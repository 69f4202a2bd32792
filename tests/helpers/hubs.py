"""Hubs for tests: the use cases alone, on an in-memory database under a clock that stands; or a whole one.

with hub_in_memory() as hub:          no threads, no NATS, no time that passes
    zurich = hub.site("zurich")       a spoke that says what a test wants it to say
    agent = hub.spawn(order())
    hub.place()
    spawn = zurich.commands()[0]
    zurich.tell("queued", spawn)
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from hub.config import DatabaseGroup, HttpGroup, HubSettings, KeysGroup, NatsGroup, TimingGroup
from hub.control import operate
from hub.control.dispatch import Seal, dispatch
from hub.control.hub import Hub
from hub.control.intake import intake
from hub.control.nudges import Nudges
from hub.control.place import explain, place
from hub.control.ripen import ripen
from hub.control.spawn import Spawned, spawn
from hub.core.admission import Order
from hub.store import agents, audit, events, placements, spokes
from hub.store.agents import Agent
from hub.store.engine import open_memory_engine
from hub.store.placements import Placement
from hub.store.spokes import Spoke
from hub.store.tables import metadata
from shared import keys
from shared.bus import Bus
from shared.errors import FelloeError, UnavailableError
from shared.ids import sha256
from shared.messages import AnswerHeader, Command, Event, EventKind, SpokeHeader, Welcome
from shared.signers import KeySigner
from shared.trust import (
    PURPOSE_OF,
    HubTrust,
    Report,
    TrustedAnswer,
    TrustedItem,
    TrustedReport,
    open_command,
)
from tests.helpers.builders import (
    FEDERATION,
    HUB,
    NOW,
    ZEROS,
    ZURICH,
    heartbeat,
    hello,
    offer,
    payload_in,
    spec,
)
from tests.helpers.spoke_peer import SpokePeer

T = TypeVar("T")

SUSPECT_MS = 30_000


def order(**changes: Any) -> Order:
    """An order for a simulated agent; changes of `priority` and the like go into its spec."""
    in_spec = {k: changes.pop(k) for k in tuple(changes) if k in _SPEC_FIELDS}
    values: dict[str, Any] = {
        "tenant": "default", "actor": "tester", "key": None, "request_sha256": ZEROS, "spec": spec(**in_spec),
        "labels": {}, "selector": {}, "spoke": None, "hold": False, "start_ms": None, "trace": "",
    }  # fmt: skip
    return Order(**values | changes)


_SPEC_FIELDS = set(spec().__struct_fields__)


class HubInMemory:
    """The use cases in the order of the main job. `now` moves when a test moves it."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.now = NOW
        self.nudges = Nudges()
        self.seal = Seal(hub="hub", federation=FEDERATION, signer=HUB, command_ms=300_000)

    def do(self, use_case: Callable[..., T], *args: Any, **named: Any) -> T:
        """Run a use case as the writer does: what it raises leaves nothing behind."""
        head = audit.head(self.connection)
        try:
            with self.connection.begin():
                return use_case(self.connection, *args, **named)
        except BaseException:
            audit.set_head(self.connection, head)
            raise

    def site(self, name: str = "zurich", *, says_hello: bool = True, **changes: Any) -> "Site":
        """A spoke whose key is pinned, greeted already unless told otherwise."""
        self.do(spokes.admit, name, ZURICH.key_id)
        site = Site(self, name)
        if says_hello:
            site.hello(**changes)
        return site

    # --- the main job -----------------------------------------------------------------------------

    def spawn_all(self, orders: Sequence[Order]) -> list[Spawned | FelloeError]:
        results, self.nudges = self.do(spawn, orders, self.now)
        return results

    def spawn(self, wanted: Order | None = None) -> str:
        """The id of a new agent."""
        (result,) = self.spawn_all([wanted or order()])
        assert isinstance(result, Spawned)
        return result.agent.id

    def place(self) -> int:
        count, self.nudges = self.do(place, self.now, SUSPECT_MS)
        return count

    def ripen(self) -> int:
        return self.do(ripen, self.now)[0]

    def kill(self, agent: str, **named: Any) -> Agent:
        named = {"actor": "tester", "grace_ms": None, "reason": "", "now_ms": self.now} | named
        changed, self.nudges = self.do(operate.kill, "default", agent, **named)
        return changed

    def operate(self, use_case: Callable[..., tuple[T, Nudges]], *args: Any, **named: Any) -> T:
        named = {"actor": "tester", "now_ms": self.now} | named
        result, self.nudges = self.do(use_case, *args, **named)
        return result

    # --- looking ----------------------------------------------------------------------------------

    def agent(self, agent: str, tenant: str = "default") -> Agent:
        return self.do(agents.find, tenant, agent)

    def placements(self, agent: str) -> list[Placement]:
        return self.do(placements.of_agent, agent)

    def spoke(self, name: str = "zurich") -> Spoke:
        return self.do(spokes.find, name)

    def explain(self, agent: str) -> str:
        return self.do(explain, self.agent(agent), self.now, SUSPECT_MS)

    def kinds(self, agent: str) -> list[str]:
        """What happened to an agent, by name."""
        return [event.kind for event in self.do(events.after, "default", 0, 10_000, agent)]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.do(lambda c: c.exec_driver_sql(query).fetchall())]

    def outbox(self, spoke: str = "zurich") -> list[str]:
        """The ops of what is kept for a spoke, oldest first."""
        return [
            op
            for name, op in self.rows("SELECT spoke, op FROM outbox ORDER BY id")
            if name == spoke
        ]


class Site:
    """A spoke as the hub hears it: what it says is believed to be signed, so that tests are about what is said."""

    def __init__(self, hub: HubInMemory, name: str) -> None:
        self.hub = hub
        self.name = name
        self.incarnation = 0
        self.seq = 0
        self.said_at = 0
        self.counter = 0
        self.policy = ZEROS

    def ask(self, *items: Report, **header: Any) -> TrustedAnswer:
        """Say something, and return the hub's answer."""
        values: dict[str, Any] = {
            "federation": FEDERATION, "iss": self.name, "inc": self.incarnation, "iat": self.hub.now,
        }  # fmt: skip
        report = TrustedReport(
            PURPOSE_OF[type(items[0])], SpokeHeader(**values | header), items, sha256(b"request")
        )
        data, self.hub.nudges = self.hub.do(intake, report, self.hub.seal, self.hub.now)
        answer = msgspec.json.decode(payload_in(data))
        kind = Welcome if "nonce" in answer["items"][0] else None
        item = msgspec.convert(answer["items"][0], kind) if kind else answer["items"][0]
        return TrustedAnswer(msgspec.convert(answer["header"], AnswerHeader), item)

    def hello(
        self, *, iat: int | None = None, head_seq: int | None = None, **changes: Any
    ) -> Welcome:
        """Greet; takes over the incarnation that the hub says."""
        self.policy = changes.get("policy", self.policy)
        word = hello(
            incarnation=self.incarnation,
            head_seq=self.seq if head_seq is None else head_seq,
            offer=offer(**{"slots": 4, "prefetch": 8, "policy": self.policy} | changes),
        )
        # A spoke's clock goes on between two hellos, also while the hub's stands in a test.
        self.said_at = max(self.said_at + 1, self.hub.now) if iat is None else iat
        answer = self.ask(word, iat=self.said_at)
        if answer.header.inc != self.incarnation:
            self.incarnation, self.seq = answer.header.inc, 0
        assert isinstance(answer.item, Welcome)
        return answer.item

    def beat(self, *, iat: int | None = None, **changes: Any) -> TrustedAnswer:
        self.counter += 1
        word = heartbeat(**{"counter": self.counter, "policy": self.policy} | changes)
        return self.ask(word, iat=self.hub.now if iat is None else iat)

    def commands(self) -> list[TrustedItem[Command]]:
        """What the hub sends now, verified as a spoke verifies it."""
        return [item for envelope in self.envelopes() for item in envelope]

    def envelopes(self) -> list[tuple[TrustedItem[Command], ...]]:
        sealed = self.hub.do(dispatch, self.name, self.hub.seal, self.hub.now, SUSPECT_MS)
        trust = HubTrust(FEDERATION, "hub", self.name, self.incarnation, {HUB.key_id: HUB.public})
        return [open_command(data, trust, self.hub.now, 0).items for data in sealed.envelopes]

    def event(self, kind: str, of: TrustedItem[Command], **changes: Any) -> Event:
        """The next event of this spoke, about a command."""
        self.seq += 1
        values: dict[str, Any] = {
            "seq": self.seq, "kind": EventKind(kind), "cmd": of.item.id, "cmd_sha256": of.sha256,
            "agent": getattr(of.item, "agent", None), "gen": getattr(of.item, "gen", 0), "attempt": 1, "fence": 1,
            "reason": "", "at": self.hub.now, "exit": None, "retry_at": None,
        }  # fmt: skip
        return Event(**values | changes)

    def tell(self, kind: str, of: TrustedItem[Command], **changes: Any) -> int:
        """Report one event; returns the hub's acknowledgement."""
        return self.ask(self.event(kind, of, **changes)).header.evt_ack


@contextmanager
def hub_in_memory() -> Iterator[HubInMemory]:
    engine = open_memory_engine()
    with engine.connect() as connection:
        with connection.begin():
            metadata.create_all(connection)
            audit.take_head(connection, "hub")
        yield HubInMemory(connection)
        with connection.begin():
            assert audit.first_break(connection, "hub") is None
    engine.dispose()


# --- a whole hub -------------------------------------------------------------------------------------


def hub_settings(folder: Path, nats_url: str, *sites: str, **timing: float) -> HubSettings:
    """Settings of a hub under `folder`, with its keys and those of the sites; made once, found again later."""
    hub_key, pins = folder / "hub.key", folder / "spokes"
    if not hub_key.exists():
        keys.new_key_pair(hub_key, "hub")
    pins.mkdir(exist_ok=True)
    for site in sites:
        pin(folder, site)
    return HubSettings(
        http=HttpGroup(token="a token for tests"),
        database=DatabaseGroup(file=folder / "hub.db"),
        keys=KeysGroup(hub=hub_key, spokes=pins),
        nats=NatsGroup(url=nats_url),
        timing=TimingGroup(**timing),
    )


def pin(folder: Path, site: str) -> Path:
    """Make a site's key, and pin it at the hub; returns the private key's file."""
    key = folder / f"{site}.key"
    if not key.exists():
        keys.new_key_pair(key, "spoke")
        (folder / f"{site}.key.pub").replace(folder / "spokes" / f"{site}.pub")
    return key


async def until(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def peer_of(settings: HubSettings, name: str = "zurich") -> AsyncIterator[SpokePeer]:
    """A scripted spoke on the bus that listens, and has said nothing yet."""
    bus = await Bus.connect(settings.nats.url, name=name, user="", password="")
    try:
        signer = KeySigner.from_file(settings.keys.hub.parent / f"{name}.key", "spoke")
        peer = SpokePeer(bus, name, signer, keys.read_public_key(hub_public(settings), "hub"))
        await peer.listen()
        yield peer
    finally:
        await bus.close()


def hub_public(settings: HubSettings) -> Path:
    return settings.keys.hub.with_name(f"{settings.keys.hub.name}.pub")


async def greeted(hub: Hub, peer: SpokePeer) -> SpokePeer:
    """Say hello as soon as the hub is on the bus."""
    await until(lambda: hub.health()["nats"] == "ok")
    async with asyncio.timeout(10):
        while True:
            try:
                await peer.hello()
            except UnavailableError:
                await asyncio.sleep(0.02)
            else:
                return peer
