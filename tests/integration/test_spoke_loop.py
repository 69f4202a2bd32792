"""The lease loop where it meets a kill: whatever is on its way when the kill comes, what it means does not live on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.clock import now_ms
from shared.messages import EventKind, Kill, SandboxKind, Simulation, Spawn
from spoke.core.policy import Policy
from spoke.queue.entries import Leased, Verdict
from spoke.queue.queue import Queue
from spoke.spawners.base import Handle, Sandbox
from spoke.spawners.simulated import Simulated
from spoke.state.folder import StateFolder
from spoke.work.ledger import Ledger
from spoke.work.loop import Loop
from spoke.work.site import Site
from tests.helpers.hub_peer import agent_spec, kill, spawn
from tests.helpers.valkey import ValkeyServer, new_spoke, running_valkey, trusted

POLICY = Policy(
    kinds=(SandboxKind.SIMULATED,), mounts=(), host_network=False, degraded=True, root=True
)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


class HeldUp(Queue):
    """Its answer to the lease of a second attempt is on its way until `answers`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.has_leased = asyncio.Event()
        self.answers = asyncio.Event()

    async def lease(self, count: int, now_ms: int) -> Leased:
        found = await super().lease(count, now_ms)
        if any(lease.attempt == 2 for lease in found.leases):
            self.has_leased.set()
            await self.answers.wait()
        return found


class SlowToClean(Simulated):
    """Cleans up after nobody until `may_clean`."""

    def __init__(self) -> None:
        super().__init__()
        self.may_clean = asyncio.Event()

    async def clean_up(self, sandbox: Sandbox, handle: Handle | None) -> None:
        await self.may_clean.wait()
        await super().clean_up(sandbox, handle)


@contextlib.asynccontextmanager
async def looping(queue: Queue, state: StateFolder, spawner: Simulated) -> AsyncIterator[Loop]:
    site = Site(
        policy=POLICY, mounts={}, spawners={SandboxKind.SIMULATED: spawner}, spools=state.spools
    )
    ledger = Ledger(queue, state.handles, now_ms, on_events=lambda: None)
    loop = Loop(
        queue=queue,
        handles=state.handles,
        ledger=ledger,
        site=site,
        slots=4,
        now=now_ms,
        on_events=lambda: None,
    )
    loop.open()
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(ledger.run())]
    try:
        yield loop
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take_in(queue: Queue, item: Spawn | Kill) -> Verdict:
    (verdict,) = await queue.intake(
        [trusted(item)], refused={}, full=False, cap=10, now_ms=now_ms()
    )
    return verdict


async def test_a_kill_between_lease_and_start_finds_the_attempt_though_the_last_one_is_being_cleaned_up(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    queue = await HeldUp.open(valkey.url, new_spoke(), allow_volatile=False)
    assert isinstance(queue, HeldUp)
    state, spawner = StateFolder.open(tmp_path / "state"), SlowToClean()
    try:
        await queue.take_over(host="here", epoch=1, incarnation=1, now_ms=now_ms())
        one = spawn(agent_spec(simulation=Simulation(exit_code=1), max_retries=1))
        await take_in(queue, one)
        async with looping(queue, state, spawner) as loop, asyncio.timeout(5):
            await queue.has_leased.wait()
            order = kill(one.agent)
            assert (await take_in(queue, order)).kill
            loop.kill(order)
            queue.answers.set()
            spawner.may_clean.set()
            while await queue.look(one.agent) is not None:
                await asyncio.sleep(0.01)
        events = await queue.events(0, 100)
        assert [e.attempt for e in events if e.kind is EventKind.RUNNING] == [1]
        assert events[-1].kind is EventKind.KILLED
    finally:
        state.close()
        await queue.close()
