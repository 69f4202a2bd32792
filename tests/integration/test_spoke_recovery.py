"""Whatever a dead daemon left half done, its successor brings to the right end. One row per crash point."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from shared.clock import now_ms
from shared.errors import UnavailableError
from shared.messages import Event, EventKind, Exit, ExitKind, Kill, SandboxKind, Simulation, Spawn
from spoke.core.policy import Policy
from spoke.queue.entries import Lease
from spoke.queue.queue import Queue
from spoke.spawners.base import Spawner
from spoke.spawners.simulated import Simulated
from spoke.state.folder import StateFolder
from spoke.state.handles import Intent, Key
from spoke.work.ledger import Ledger
from spoke.work.loop import Loop
from spoke.work.recovery import Recovery
from spoke.work.site import Site
from tests.helpers.hub_peer import agent_spec, kill, spawn
from tests.helpers.valkey import ValkeyServer, new_spoke, running_valkey, trusted

POLICY = Policy(
    kinds=(SandboxKind.SIMULATED,), mounts=(), host_network=False, degraded=True, root=True
)
QUEUED, RUNNING, SUCCEEDED = EventKind.QUEUED, EventKind.RUNNING, EventKind.SUCCEEDED


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


class World:
    """A queue with one leased agent, and the folder of the daemon that has just died."""

    def __init__(self, queue: Queue, state: StateFolder, one: Spawn, lease: Lease) -> None:
        self.queue = queue
        self.state = state
        self.one = one
        self.lease = lease
        self.key = Key(lease.agent, lease.gen, lease.attempt)
        self.dead = Simulated()
        self.site = self._site(self.dead)

    async def intend(self) -> None:
        fields = {name: getattr(self.lease, name) for name in Intent.__struct_fields__}
        await self.state.handles.intend([Intent(**fields)])

    async def hold(self) -> None:
        sandbox = self.site.sandbox(self.lease)
        handle = await self.dead.prepare(sandbox)
        await self.dead.release(sandbox, handle)
        await self.state.handles.hold([(self.key, msgspec.json.encode(handle))])

    async def ended(self, end: Exit) -> None:
        await self.state.handles.ended([(self.key, end)])

    async def events_after(self, count: int) -> list[Event]:
        """Let a successor work until there are `count` events."""
        async with successor(self):
            async with asyncio.timeout(5):
                while len(await self.queue.events(0, 100)) < count:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        assert self.state.handles.all() == []
        return await self.queue.events(0, 100)

    def _site(self, spawner: Simulated) -> Site:
        spawners: Mapping[SandboxKind, Spawner] = {SandboxKind.SIMULATED: spawner}
        return Site(policy=POLICY, mounts={}, spawners=spawners, spools=self.state.spools)


@contextlib.asynccontextmanager
async def successor(world: World) -> AsyncIterator[None]:
    site = world._site(Simulated())
    ledger = Ledger(world.queue, world.state.handles, now_ms, on_events=lambda: None)
    loop = Loop(
        queue=world.queue,
        handles=world.state.handles,
        ledger=ledger,
        site=site,
        slots=4,
        now=now_ms,
        on_events=lambda: None,
    )
    await Recovery(
        queue=world.queue, handles=world.state.handles, site=site, loop=loop, now=now_ms
    ).run()
    loop.open()
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(ledger.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def world(valkey: ValkeyServer, tmp_path: Path) -> AsyncIterator[World]:
    queue = await Queue.open(valkey.url, new_spoke(), allow_volatile=False)
    state = StateFolder.open(tmp_path / "state")
    try:
        await queue.take_over(host="here", epoch=1, incarnation=1, now_ms=now_ms())
        one = spawn(agent_spec(simulation=Simulation(duration_ms=150)))
        await take_in(queue, one)
        (lease,) = (await queue.lease(1, now_ms())).leases
        yield World(queue, state, one, lease)
    finally:
        state.close()
        await queue.close()


async def take_in(queue: Queue, item: Spawn | Kill) -> None:
    await queue.intake([trusted(item)], refused={}, full=False, cap=10, now_ms=now_ms())


async def test_a_lease_that_was_never_written_down_is_handed_back_and_run(world: World) -> None:
    events = await world.events_after(3)
    assert [e.kind for e in events] == [QUEUED, RUNNING, SUCCEEDED]
    assert events[-1].attempt == 1


async def test_a_queue_that_goes_away_again_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased, tries = world.queue.leased, iter((True, False))

    async def flaky() -> list[Lease]:
        if next(tries):
            raise UnavailableError("Valkey is away")
        return await leased()

    monkeypatch.setattr(world.queue, "leased", flaky)
    events = await world.events_after(3)
    assert [e.kind for e in events] == [QUEUED, RUNNING, SUCCEEDED]


async def test_an_intent_without_a_sandbox_is_not_counted(world: World) -> None:
    await world.intend()
    events = await world.events_after(3)
    assert [e.kind for e in events] == [QUEUED, RUNNING, SUCCEEDED]
    assert events[-1].attempt == 1


async def test_a_live_sandbox_is_adopted_and_reported(world: World) -> None:
    await world.intend()
    await world.hold()
    events = await world.events_after(3)
    assert [e.kind for e in events] == [QUEUED, RUNNING, SUCCEEDED]
    assert events[-1].fence == world.lease.fence


async def test_an_agent_that_ended_meanwhile_is_reported(world: World) -> None:
    await world.intend()
    await world.hold()
    await asyncio.sleep(0.2)
    events = await world.events_after(2)
    assert [e.kind for e in events] == [QUEUED, SUCCEEDED]


async def test_an_exit_that_was_written_down_is_what_is_reported(world: World) -> None:
    await world.intend()
    await world.hold()
    await world.ended(Exit(kind=ExitKind.EXITED, code=9))
    events = await world.events_after(2)
    assert (events[-1].kind, events[-1].reason) == (EventKind.FAILED, "exit code 9")


async def test_a_kill_that_came_before_the_crash_is_carried_out(world: World) -> None:
    await world.intend()
    await world.hold()
    await take_in(world.queue, kill(world.one.agent, reason="enough"))
    events = await world.events_after(3)
    assert events[-1].kind is EventKind.KILLED
    assert events[-1].reason == "enough"


async def test_a_kill_of_what_never_ran_ends_it_without_running(world: World) -> None:
    await world.intend()
    await take_in(world.queue, kill(world.one.agent))
    events = await world.events_after(3)
    assert RUNNING not in [e.kind for e in events]
    assert events[-1].kind is EventKind.KILLED


async def test_a_sandbox_that_the_queue_knows_nothing_of_is_ended(world: World) -> None:
    stranger = msgspec.structs.replace(world.lease, fence=world.lease.fence + 1_000)
    world.lease = stranger
    await world.intend()
    await world.hold()
    events = await world.events_after(3)
    # The queue's own lease had no intent: handed back, and run by itself.
    assert [e.kind for e in events] == [QUEUED, RUNNING, SUCCEEDED]
    assert events[-1].fence != stranger.fence
