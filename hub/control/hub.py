"""The hub: everything that runs beside the API, built in one place and owned by one task group.

    placement   one loop: ripen what time brings, place what can be placed
    dispatch    one loop per spoke: what is due in the outbox goes out
    intake      what spokes say, one transaction per envelope, answered when it is committed
    watch       live questions of readers

The loops are woken by nudges after a commit and look by themselves every second, so a lost nudge costs time only.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import sqlalchemy as sa
import structlog

from hub.config import HubSettings
from hub.control import place, ripen
from hub.control.catalogue import read_types
from hub.control.dispatch import Dispatch, Seal, dispatch
from hub.control.dispatcher import LOOK_S, Dispatchers, wait
from hub.control.fanout import Fanout
from hub.control.grouping import SpawnGroups
from hub.control.intake import intake
from hub.control.metrics import Metrics
from hub.control.nudges import Nudges
from hub.control.pins import Pins
from hub.control.spawn import Spawned, spawn
from hub.control.watch import LogPiece, Watch
from hub.core.admission import Order
from hub.schemas import AgentType
from hub.store import spokes, types
from hub.store.agents import Agent
from hub.store.engine import HubLock, open_engine
from hub.store.migrate import upgrade
from hub.store.writer import Reader, UseCase, Writer
from shared import clock, subjects
from shared.bus import Bus
from shared.envelope import RefusalError
from shared.errors import FelloeError, NotFoundError, UnavailableError
from shared.messages import Purpose, Reply
from shared.signers import KeySigner
from shared.trust import REQUESTS, SpokeTrust, federation_of, open_report

log = structlog.get_logger()

T = TypeVar("T")


class Hub:
    """One hub process. Built by `open`; the API's handlers get it as an argument."""

    def __init__(
        self,
        settings: HubSettings,
        writer: Writer,
        reader: Reader,
        seal: Seal,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.settings = settings
        self.reader = reader
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self.types: Mapping[str, AgentType] = {}
        self._writer = writer
        self._seal = seal
        self._bus: Bus | None = None
        self._watch: Watch | None = None
        self._pins = Pins(settings.keys.spokes)
        self._pins_read_ms = 0
        self._fanout = Fanout()
        self._suspect_ms = int(settings.timing.suspect_s * 1000)
        self._place_wanted = asyncio.Event()
        self._groups = SpawnGroups(self._commit_orders, tasks)
        self._dispatchers = Dispatchers(tasks, lambda: self._bus, self._seal_due)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: HubSettings) -> "AsyncGenerator[Hub]":
        """Lock the database, bring it up to date, start the loops; NATS may come later. Ends all of it on exit."""
        signer = KeySigner.from_file(settings.keys.hub, "hub")
        file = settings.database.file
        file.parent.mkdir(parents=True, exist_ok=True)
        command_ms = int(settings.timing.command_s * 1000)
        federation = federation_of(signer.public)
        seal = Seal(
            hub=settings.hub.id, federation=federation, signer=signer, command_ms=command_ms
        )
        async with (
            _open_store(file, settings.hub.id) as (writer, reader),
            asyncio.TaskGroup() as tasks,
        ):
            hub = cls(settings, writer, reader, seal, tasks)
            await hub._take_stock()
            running = [
                tasks.create_task(hub._run_placement()),
                tasks.create_task(hub._run_bus()),
            ]
            try:
                yield hub
            finally:
                await hub._stop(running)

    # --- what the API calls --------------------------------------------------------------------------

    def now_ms(self) -> int:
        return clock.now_ms()

    async def spawn(self, orders: Sequence[Order]) -> list[Spawned | FelloeError]:
        """Store agents, grouped with whoever else spawns while the last group is being committed."""
        return await self._groups.spawn(orders)

    async def do(self, use_case: Callable[[sa.Connection, int], tuple[T, Nudges]]) -> T:
        """Run a use case durably, then wake whom it nudged."""
        result, nudges = await self._writer.run(
            lambda connection: use_case(connection, self.now_ms())
        )
        self._nudge(nudges)
        return result

    async def store(self, use_case: UseCase[T]) -> T:
        """Run a write that wakes nobody."""
        return await self._writer.run(use_case)

    async def reload_types(self) -> None:
        """Read the catalogue again after it was changed."""
        self.types = self.reader.run(types.all)

    def explain(self, agent: Agent) -> str:
        """Return why a pending agent waits, from the fleet as it is now."""
        return self.reader.run(lambda c: place.explain(c, agent, self.now_ms(), self._suspect_ms))

    async def ask_status(self, agent: Agent) -> tuple[Reply | None, str]:
        """Ask the agent's spoke: its reply, or None and why there is none."""
        if self._watch is None:
            return None, "NATS is away"
        return await self._watch.status(agent, self.settings.timing.status_s)

    async def tail(
        self, agent: Agent, *, gen: int, attempt: int, offset: int, follow: bool
    ) -> AsyncGenerator[LogPiece]:
        """Yield an agent's output from a position on; see `hub.control.watch`."""
        while self._watch is None:
            if not follow:
                yield LogPiece(
                    gen=gen, attempt=attempt, offset=offset, kind="absent", reason="NATS is away"
                )
                return
            await asyncio.sleep(LOOK_S)
        pieces = self._watch.tail(agent, gen=gen, attempt=attempt, offset=offset, follow=follow)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def changed(self, agent_id: str | None) -> AbstractContextManager[asyncio.Event]:
        """Lend an event that is set whenever something of that agent (None: of any) was committed."""
        return self._fanout.watching(agent_id)

    def health(self) -> dict[str, str]:
        """Return, for each part that the hub stands on, `ok` or what is wrong with it."""
        connected = self._bus is not None and self._bus.is_connected
        return {
            "database": self._writer.failure or "ok",
            "nats": "ok" if connected else f"not connected to {self.settings.nats.url}",
        }

    def metrics_text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self.metrics.render(self.reader, self.now_ms(), self._suspect_ms)

    # --- loops ---------------------------------------------------------------------------------------

    async def _take_stock(self) -> None:
        """Enter the pinned spokes and the types from the settings before anything else happens."""
        await self._read_pins()
        now_ms = self.now_ms()
        catalogue = _read_types(self.settings)

        def enter(connection: sa.Connection) -> None:
            for kind in catalogue:
                types.put(connection, kind, now_ms)

        await self._writer.run(enter)
        await self.reload_types()

    async def _read_pins(self) -> None:
        """Enter every spoke whose key is pinned, then trust the keys: in this order, so that a failure is made good."""
        found = self._pins.read()

        def enter(connection: sa.Connection) -> None:
            for spoke, keys in found.items():
                spokes.admit(connection, spoke, next(iter(keys)))

        await self._writer.run(enter)
        self._pins.adopt(found)

    async def _run_bus(self) -> None:
        nats = self.settings.nats
        self._bus = await Bus.connect(
            nats.url,
            name=self.settings.hub.id,
            user=nats.user,
            password=nats.password,
            inbox_prefix="_INBOX_hub",
        )
        self._bus.on_connect(self._wake_everything)
        self._watch = Watch(
            self._bus,
            self.reader,
            self._seal,
            trust_of=self._trust_of,
            on_refusal=self._note_refusal,
            fanout=self._fanout,
            clock=self.now_ms,
            reader_id=f"{self.settings.hub.id}-{secrets.token_hex(4)}",
            suspect_ms=self._suspect_ms,
        )
        await self._watch.listen()
        await self._bus.listen(
            subjects.ALL_REPORTS, self._on_report, group=subjects.HUB_QUEUE_GROUP, parallel=True
        )
        self._wake_everything()

    async def _run_placement(self) -> None:
        ripe_at_ms = 0
        while True:
            self._place_wanted.clear()
            try:
                if self.now_ms() >= ripe_at_ms:
                    await self.do(ripen.ripen)
                    ripe_at_ms = self.now_ms() + int(LOOK_S * 1000)
                await self._place()
            except UnavailableError as error:
                log.warning("placement_waits", error=str(error))
                await asyncio.sleep(LOOK_S)
            except (
                Exception
            ):  # a fault of ours must not end the hub: kills would not go out any more
                log.exception("placement_failed")
                await asyncio.sleep(LOOK_S)
            await wait(self._place_wanted, LOOK_S)

    async def _place(self) -> None:
        """Place, and send at once what that put into outboxes: in the same transaction, so under the same fsync."""
        bus = self._bus if self._bus is not None and self._bus.is_connected else None

        def place_and_seal(
            connection: sa.Connection, now_ms: int
        ) -> tuple[list[tuple[str, Dispatch]], Nudges]:
            _, nudges = place.place(connection, now_ms, self._suspect_ms)
            chosen = nudges.spokes if bus is not None else ()
            sealed = [
                (spoke, dispatch(connection, spoke, self._seal, now_ms, self._suspect_ms))
                for spoke in chosen
            ]
            return sealed, msgspec.structs.replace(nudges, spokes=frozenset())

        for spoke, sealed in await self.do(place_and_seal):
            await self._publish(spoke, sealed)

    async def _publish(self, spoke: str, sealed: Dispatch) -> None:
        if self._bus is None:
            raise UnavailableError("NATS is away")
        for envelope in sealed.envelopes:
            await self._bus.publish(subjects.commands(spoke), envelope)
        self.metrics.envelopes_sent.inc(len(sealed.envelopes))
        if sealed.wait_ms == 0:
            self._dispatchers.wake(spoke)

    async def _seal_due(self, spoke: str) -> Dispatch:
        now_ms = self.now_ms()
        sealed = await self._writer.run(
            lambda c: dispatch(c, spoke, self._seal, now_ms, self._suspect_ms)
        )
        self.metrics.envelopes_sent.inc(len(sealed.envelopes))
        return sealed

    async def _commit_orders(self, orders: Sequence[Order]) -> list[Spawned | FelloeError]:
        self._place_wanted.set()  # it joins the commit that is about to begin
        results = await self.do(lambda c, now_ms: spawn(c, orders, now_ms))
        self.metrics.accepted.inc(len(orders))
        return results

    async def _stop(self, running: Sequence[asyncio.Task[None]]) -> None:
        self.stopping.set()
        self._fanout.wake_all()
        self._groups.stop()
        self._dispatchers.stop()
        for task in running:
            task.cancel()
        if self._bus is not None:
            await self._bus.close()

    async def _on_report(self, subject: str, data: bytes) -> bytes | None:
        """Answer what a spoke says; to what proves no sender nothing is answered, and it is counted."""
        spoke = subjects.spoke_of(subject)
        try:
            trust = await self._trust_or_admit(spoke)
            report = open_report(data, REQUESTS, trust)
            sealed, nudges = await self._writer.run(
                lambda c: intake(c, report, self._seal, self.now_ms())
            )
        except RefusalError as error:
            self._note_refusal(spoke, error)
            return None
        except FelloeError as error:
            log.warning("report_not_taken", spoke=spoke, error=str(error))
            return None
        self._nudge(nudges)
        if report.purpose is Purpose.HELLO and self._watch is not None:
            self._watch.renew(spoke)
        return sealed

    # --- small parts ---------------------------------------------------------------------------------

    def _note_refusal(self, spoke: str, error: RefusalError) -> None:
        self.metrics.refusals.labels(error.refusal.value).inc()
        log.warning("report_refused", spoke=spoke, refusal=error.refusal.value, detail=str(error))

    def _trust_of(self, spoke: str) -> SpokeTrust | None:
        keys = self._pins.keys_of(spoke)
        return SpokeTrust(self._seal.federation, spoke, keys) if keys else None

    async def _trust_or_admit(self, spoke: str) -> SpokeTrust:
        trust = self._trust_of(spoke)
        if trust is not None:
            return trust
        now_ms = self.now_ms()
        if (
            now_ms - self._pins_read_ms >= LOOK_S * 1000
        ):  # strangers must not make us read files all the time
            self._pins_read_ms = now_ms
            await self._read_pins()
        trust = self._trust_of(spoke)
        if trust is None:
            raise NotFoundError(
                f"no key is pinned for spoke {spoke}: put {spoke}.pub into {self.settings.keys.spokes}"
            )
        return trust

    def _nudge(self, nudges: Nudges) -> None:
        if nudges.place:
            self._place_wanted.set()
        for spoke in nudges.spokes:
            self._dispatchers.wake(spoke)
        self._fanout.wake(nudges.agents)

    def _wake_everything(self) -> None:
        self._place_wanted.set()
        for spoke in self.reader.run(spokes.all):
            self._dispatchers.wake(spoke.id)


@asynccontextmanager
async def _open_store(file: Path, chain: str) -> AsyncGenerator[tuple[Writer, Reader]]:
    """Lock the database, bring it up to date, open it for writing and reading; close all of it on exit."""
    lock = HubLock(file)
    try:
        upgrade(file)
        reader = Reader(open_engine(file, read_only=True))
        writer = Writer(open_engine(file), chain)
        writer.start()
        try:
            yield writer, reader
        finally:
            await writer.stop()
            reader.close()
    finally:
        lock.release()


def _read_types(settings: HubSettings) -> list[AgentType]:
    return [] if settings.hub.types is None else read_types(settings.hub.types)
