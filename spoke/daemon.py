"""The spoke daemon, built in one place.

Start-up has an order, and each step stands on the one before:

    claim the state folder → keys → what this host can enforce → the queue answers → take over (folder first)
    → recover what a predecessor left → look after it → NATS answers → take in → hello → lease

The state folder's epoch is raised before the queue's, so that a predecessor that still lives is fenced whichever of
the two it looks at. What was recovered is looked after at once: its time-outs must not wait for a link. Leasing waits
for the hub's welcome, but not for ever: a site whose link is down goes on with what it has accepted.

A graceful stop is the other way round: nothing more is taken in or leased, sandboxes go on (the next daemon finds
them), events that the hub can still take are sent, and the rest stays where it is durable. Every task has one owner,
the group in `run`; if one of them fails, all of them end, and so does the daemon.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import structlog

from shared import subjects
from shared.bus import Bus
from shared.clock import now_ms
from shared.errors import UnavailableError
from shared.keys import read_public_key
from shared.messages import Offer
from shared.signers import KeySigner
from shared.version import VERSION
from spoke.config import SpokeSettings
from spoke.core.policy import Policy, digest, policy_of
from spoke.core.standing import Identity, Standing, Wanted
from spoke.intake.consumer import Consumer
from spoke.intake.handlers import Handlers
from spoke.queue.entries import Taken
from spoke.queue.queue import Queue
from spoke.report.heartbeat import Pulse
from spoke.report.link import Link
from spoke.report.outbox import Outbox
from spoke.spawners.host import look
from spoke.state.folder import StateFolder
from spoke.work.batching import until_there
from spoke.work.channel import Channel
from spoke.work.equipment import Equipment, equip
from spoke.work.ledger import Ledger
from spoke.work.loop import Loop
from spoke.work.recovery import Recovery
from spoke.work.site import Site

log = structlog.get_logger()

_T = TypeVar("_T")

# How long leasing waits for the hub's welcome.
_PATIENCE_S: Final = 10.0
_REMEMBER_S: Final = 1.0
_SWEEP_S: Final = 600.0


def identity_of(settings: SpokeSettings) -> Identity:
    """Read the keys; raises ConfigError."""
    return Identity(
        spoke=settings.spoke.name,
        hub=settings.spoke.hub,
        signer=KeySigner.from_file(settings.keys.spoke, "spoke"),
        hub_key=read_public_key(settings.keys.hub, "hub"),
    )


def prefetch_of(settings: SpokeSettings) -> int:
    given = settings.spoke.prefetch
    return 2 * settings.spoke.slots if given is None else given


async def serve(settings: SpokeSettings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises ConfigError for settings that cannot work, FencedError when replaced."""
    identity = identity_of(settings)
    state = StateFolder.open(settings.spoke.state)
    try:
        equipment = equip(settings.sandbox, look())
        for line in equipment.lacks:
            log.warning("degraded", lacks=line)
        daemon = await _unless(stop, Daemon.start(settings, identity, equipment, state))
        if daemon is not None:
            await daemon.run(stop)
    finally:
        state.close()
    log.info("stopped", spoke=settings.spoke.name)


class Daemon:
    """The parts that stand without a link, and the tasks of all of them. Made by `start`."""

    def __init__(
        self,
        *,
        settings: SpokeSettings,
        equipment: Equipment,
        state: StateFolder,
        queue: Queue,
        taken: Taken,
        identity: Identity,
    ) -> None:
        self._settings = settings
        self._state = state
        self._queue = queue
        self._epoch = taken.epoch
        self._lacks = equipment.lacks
        self._policy: Policy = policy_of(settings.sandbox, equipment.kinds)
        wanted = Wanted(rev=taken.rev, paused=taken.paused, cordoned=taken.cordoned)
        self.standing = Standing(
            identity,
            incarnation=taken.incarnation,
            newest_ms=state.journal.facts.newest_ms,
            wanted=wanted,
        )
        self.site = Site(
            policy=self._policy,
            mounts=settings.sandbox.mounts,
            spawners=equipment.spawners,
            spools=state.spools,
        )
        self._outbox: Outbox | None = None
        self._ledger = Ledger(queue, state.handles, now_ms, on_events=self._on_events)
        self.loop = Loop(
            queue=queue,
            handles=state.handles,
            ledger=self._ledger,
            site=self.site,
            slots=settings.spoke.slots,
            now=now_ms,
            on_events=self._on_events,
        )

    @classmethod
    async def start(
        cls,
        settings: SpokeSettings,
        identity: Identity,
        equipment: Equipment,
        state: StateFolder,
    ) -> "Daemon":
        """Take the queue over and recover; waits for Valkey. Raises ConfigError, FencedError."""
        group = settings.queue
        queue = await Queue.open(
            group.url, settings.spoke.name, allow_volatile=group.allow_volatile
        )
        try:
            taken = await until_there("take_over", lambda: _take_over(queue, state))
            daemon = cls(
                settings=settings,
                equipment=equipment,
                state=state,
                queue=queue,
                taken=taken,
                identity=identity,
            )
            await Recovery(
                queue=queue,
                handles=state.handles,
                site=daemon.site,
                loop=daemon.loop,
                now=now_ms,
            ).run()
        except BaseException:
            await queue.close()
            raise
        log.info(
            "took_over", spoke=settings.spoke.name, epoch=taken.epoch, head_seq=taken.head_seq
        )
        return daemon

    async def run(self, stop: asyncio.Event) -> None:
        """Look after what runs and obey the hub, until `stop`. Raises FencedError, alone in its group or not."""
        try:
            async with asyncio.TaskGroup() as group:
                written = group.create_task(self._ledger.run())
                kept = group.create_task(self._remember())
                swept = group.create_task(self._sweep())
                linked = group.create_task(self._link(stop))
                works = group.create_task(self.loop.run())
                group.create_task(_end_with(stop, linked, works, swept, kept, written))
        finally:
            await self._queue.close()

    # --- the link -----------------------------------------------------------------------------------

    async def _link(self, stop: asyncio.Event) -> None:
        """Connect, take in and report; after `stop`, flush what the hub can still take."""
        opener = asyncio.create_task(self._open_in_time())
        bus: Bus | None = None
        try:
            nats = self._settings.nats
            dial = Bus.connect(
                nats.url,
                name=f"felloe-spoke {self.standing.spoke}",
                user=nats.user,
                password=nats.password,
                inbox_prefix=subjects.inbox(self.standing.spoke),
            )
            bus = await _unless(stop, dial)
            if bus is not None:
                await self._talk(bus, stop)
        finally:
            opener.cancel()
            if bus is not None:
                await bus.close()

    async def _talk(self, bus: Bus, stop: asyncio.Event) -> None:
        link = Link(bus, self.standing, now_ms)
        outbox = self._outbox = Outbox(
            queue=self._queue,
            journal=self._state.journal,
            standing=self.standing,
            link=link,
            offer=self._offer(),
            now=now_ms,
        )
        outbox.on_renewal(self.loop.say_again)
        bus.on_connect(outbox.greet)
        pulse = self._pulse(link, outbox)
        channel = self._channel(bus)
        consumer = self._consumer(outbox, pulse, channel)
        async with asyncio.TaskGroup() as group:
            takes = group.create_task(consumer.run())
            await bus.listen(subjects.commands(self.standing.spoke), consumer.receive)
            reports = group.create_task(outbox.run())
            beats = group.create_task(pulse.run())
            shows = group.create_task(channel.run())
            opens = group.create_task(self._open_when_welcomed(outbox))
            await stop.wait()
            takes.cancel()
            if bus.is_connected:
                await self._flush(outbox)
            for task in (opens, shows, beats, reports):
                task.cancel()

    async def _flush(self, outbox: Outbox) -> None:
        outbox.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timing.stop_s):
                await outbox.flushed()

    async def _open_when_welcomed(self, outbox: Outbox) -> None:
        await outbox.welcomed()
        self.loop.open()

    async def _open_in_time(self) -> None:
        await asyncio.sleep(_PATIENCE_S)
        self.loop.open()

    def _offer(self) -> Offer:
        spoke = self._settings.spoke
        return Offer(
            slots=spoke.slots,
            prefetch=prefetch_of(self._settings),
            cap=spoke.cap,
            kinds=self._policy.kinds,
            mounts=self._policy.mounts,
            labels=spoke.labels,
            lacks=tuple(line[:1024] for line in self._lacks),
            policy=digest(self._policy),
            version=VERSION,
        )

    def _pulse(self, link: Link, outbox: Outbox) -> Pulse:
        return Pulse(
            queue=self._queue,
            standing=self.standing,
            link=link,
            outbox=outbox,
            policy=digest(self._policy),
            epoch=self._epoch,
            every_s=self._settings.timing.heartbeat_s,
            now=now_ms,
        )

    def _channel(self, bus: Bus) -> Channel:
        return Channel(
            bus=bus,
            standing=self.standing,
            queue=self._queue,
            spools=self._state.spools,
            loop=self.loop,
            now=now_ms,
        )

    def _consumer(self, outbox: Outbox, pulse: Pulse, channel: Channel) -> Consumer:
        def wake() -> None:
            self.loop.wake()
            outbox.wake()

        def accepted() -> None:
            self.loop.wake()
            if self.loop.has_room:
                outbox.wake_soon()
            else:
                outbox.wake()

        handlers = Handlers(
            kill=self.loop.kill,
            ask=channel.ask,
            tail=channel.tail,
            accepted=accepted,
            wake=wake,
            pulse=pulse,
            standing=self.standing,
        )
        return Consumer(
            queue=self._queue,
            standing=self.standing,
            policy=self._policy,
            outbox=outbox,
            handlers=handlers,
            cap=self._settings.spoke.cap,
            now=now_ms,
        )

    def _on_events(self) -> None:
        if self._outbox is not None:
            self._outbox.wake()

    # --- housekeeping ---------------------------------------------------------------------------------

    async def _remember(self) -> None:
        """Keep in the folder what must survive Valkey; once more at the end."""
        try:
            while True:
                await asyncio.sleep(_REMEMBER_S)
                await until_there("journal", self._save)
        finally:
            with contextlib.suppress(UnavailableError):
                await self._save()

    async def _save(self) -> None:
        facts = self._state.journal.facts
        now = (self.standing.newest_ms, self._queue.head_seq, self.standing.wanted.rev)
        if now != (facts.newest_ms, facts.head_seq, facts.rev):
            await self._state.journal.save(newest_ms=now[0], head_seq=now[1], rev=now[2])

    async def _sweep(self) -> None:
        """Drop finished output that was kept long enough."""
        keep_ms = int(self._settings.logs.keep_s * 1000)
        while True:
            # In a thread: it walks through all folders.
            dropped = await asyncio.to_thread(
                self._state.spools.drop_older_than, now_ms(), keep_ms, alive=self.loop.alive()
            )
            if dropped:
                log.info("spools_dropped", attempts=len(dropped))
            await asyncio.sleep(_SWEEP_S)


async def _take_over(queue: Queue, state: StateFolder) -> Taken:
    """Raise the folder's epoch, then the queue's; repeated, it only raises them again."""
    facts = await state.journal.save(epoch=state.journal.facts.epoch + 1, host=state.host)
    taken = await queue.take_over(
        host=state.host, epoch=facts.epoch, incarnation=facts.incarnation, now_ms=now_ms()
    )
    await state.journal.save(epoch=taken.epoch)
    return taken


async def _end_with(
    stop: asyncio.Event, linked: "asyncio.Task[None]", *tasks: "asyncio.Task[None]"
) -> None:
    """After `stop`: first what works, then, when the link has flushed, the rest."""
    await stop.wait()
    tasks[0].cancel()
    await asyncio.wait([linked])
    for task in tasks[1:]:
        task.cancel()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return the result of `work`, or None if `stop` came first."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
