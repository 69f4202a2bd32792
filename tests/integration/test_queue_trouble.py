"""The queue when Valkey is away, full, killed, wiped or wrongly set, and when a caller is cancelled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis import Redis

from shared.errors import ConfigError, FencedError, UnavailableError
from shared.messages import EventKind, QueueCounts
from spoke.queue.queue import Queue
from tests.helpers.builders import kill, new_id, spawn, spec
from tests.helpers.valkey import (
    AT,
    ValkeyServer,
    end_of,
    new_spoke,
    note_of,
    owned_queue,
    running_valkey,
    take_in,
    told,
)

MIB = 1024**2


@contextlib.asynccontextmanager
async def queue_of_its_own(**settings: str) -> AsyncIterator[tuple[ValkeyServer, Queue]]:
    with running_valkey(**settings) as server:
        async with owned_queue(server) as queue:
            yield server, queue


# --- at the start ------------------------------------------------------------------------------------


async def test_open_waits_for_a_server_that_is_not_there_yet() -> None:
    server = ValkeyServer()
    opening = asyncio.create_task(Queue.open(server.url, "zurich", allow_volatile=False))
    try:
        await asyncio.sleep(0.3)
        assert not opening.done()
        server.start()
        async with asyncio.timeout(5):
            queue = await opening
        await queue.close()
    finally:
        opening.cancel()
        server.close()


async def test_waiting_for_a_server_can_be_cancelled() -> None:
    url = "unix:///nowhere/at/all"
    opening = asyncio.create_task(Queue.open(url, "zurich", allow_volatile=False))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"appendfsync": "everysec"}, "appendfsync"),
        ({"appendonly": "no"}, "appendonly"),
    ],
)
async def test_settings_that_a_power_cut_would_punish_must_be_allowed(
    settings: dict[str, str], names: str
) -> None:
    with running_valkey(**settings) as server:
        with pytest.raises(ConfigError, match=names):
            await Queue.open(server.url, "zurich", allow_volatile=False)
        queue = await Queue.open(server.url, "zurich", allow_volatile=True)
        await queue.close()


async def test_a_server_that_evicts_is_never_taken() -> None:
    with (
        running_valkey(**{"maxmemory-policy": "allkeys-lru"}) as server,
        pytest.raises(ConfigError, match="noeviction"),
    ):
        await Queue.open(server.url, "zurich", allow_volatile=True)


async def test_a_wrong_password_and_a_wrong_url_are_said_at_once() -> None:
    with (
        running_valkey(requirepass="secret") as server,
        pytest.raises(ConfigError, match="let us in"),
    ):
        await Queue.open(server.url, "zurich", allow_volatile=False)
    with pytest.raises(ConfigError, match=r"queue\.url"):
        await Queue.open("http://127.0.0.1:1", "zurich", allow_volatile=False)


# --- away --------------------------------------------------------------------------------------------


async def test_nothing_is_lost_when_valkey_is_killed() -> None:
    async with queue_of_its_own() as (server, queue):
        waits, lives, fails = (spawn(spec=spec(priority=p, arrived_ms=AT)) for p in (1, 8, 9))
        await take_in(queue, waits, lives, fails)
        failing, living = (await queue.lease(2, AT)).leases
        await queue.started([note_of(failing), note_of(living)], AT)
        await queue.finish([end_of(failing, EventKind.RETRYING, retry_at=AT + 5)], AT)
        before = (await told(queue), await queue.counts(), await queue.inventory())
        server.kill()
        with pytest.raises(UnavailableError):
            await queue.lease(1, AT)
        with pytest.raises(UnavailableError):
            await queue.almost_full()
        server.start()
        assert (await told(queue), await queue.counts(), await queue.inventory()) == before
        assert [each.agent for each in await queue.leased()] == [lives.agent]
        assert await queue.finish([end_of(living)], AT) == [True]
        assert [each.agent for each in (await queue.lease(5, AT + 5)).leases] == [
            fails.agent,
            waits.agent,
        ]


async def test_a_server_without_our_scripts_is_given_them() -> None:
    async with queue_of_its_own() as (server, queue):
        await take_in(queue, spawn())
        with Redis.from_url(server.url) as client:
            client.script_flush()
        await take_in(queue, spawn())
        assert (await queue.counts()).queued == 2


async def test_a_server_that_lost_its_contents_fences_the_daemon_out() -> None:
    async with queue_of_its_own() as (server, queue):
        await take_in(queue, spawn())
        with Redis.from_url(server.url) as client:
            client.flushall()
        with pytest.raises(FencedError, match="lost its contents"):
            await queue.counts()


async def test_a_server_that_went_back_fences_the_daemon_out() -> None:
    spoke = new_spoke()
    with running_valkey() as server:
        async with owned_queue(server, spoke) as queue:
            await take_in(queue, spawn())
            with Redis.from_url(server.url) as client:
                meta = f"felloe:{{{spoke}}}:meta"
                old = client.hgetall(meta)
                await take_in(queue, spawn())
                client.hset(meta, mapping=old)
            with pytest.raises(FencedError, match="went back"):
                await queue.lease(1, AT)


# --- lost answers ------------------------------------------------------------------------------------


async def test_a_cancelled_lease_is_handed_out_again() -> None:
    async with queue_of_its_own() as (_, queue):
        commands = [spawn() for _ in range(5)]
        await take_in(queue, *commands)
        for _ in range(3):
            call = asyncio.create_task(queue.lease(1, AT))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        leases = (await queue.lease(5, AT)).leases
        assert sorted(each.agent for each in leases) == [each.agent for each in commands]
        assert (await queue.lease(5, AT)).leases == []
        assert (await queue.counts()).running == 5


async def test_a_cancelled_intake_is_whole_or_not_at_all_and_can_be_repeated() -> None:
    async with queue_of_its_own() as (_, queue):
        commands = [spawn() for _ in range(50)]
        call = asyncio.create_task(take_in(queue, *commands))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        verdicts = await take_in(queue, *commands)
        assert len({verdict.kind for verdict in verdicts}) == 1
        assert await queue.counts() == QueueCounts(queued=50, running=0, retrying=0, dead=0)
        assert len(await queue.events(0, 1_000)) == 50


async def test_close_waits_for_a_call_whose_caller_is_gone() -> None:
    spoke = new_spoke()
    with running_valkey() as server:
        async with owned_queue(server, spoke) as queue:
            call = asyncio.create_task(take_in(queue, spawn()))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.sleep(0)
        async with owned_queue(server, spoke) as queue:
            assert (await queue.counts()).queued == 1


async def test_many_calls_at_once_share_the_connections() -> None:
    async with queue_of_its_own() as (_, queue):
        await asyncio.gather(*(take_in(queue, spawn()) for _ in range(40)))
        leases = await asyncio.gather(*(queue.lease(4, AT) for _ in range(10)))
        agents = [each.agent for leased in leases for each in leased.leases]
        assert len(agents) == len(set(agents)) == 40


async def test_very_large_batches_and_empty_ones_are_served() -> None:
    async with queue_of_its_own() as (_, queue):
        assert await take_in(queue) == []
        assert await queue.started([], AT) == await queue.finish([], AT) == []
        for _ in range(12):
            await take_in(queue, *(spawn() for _ in range(250)), cap=10_000)
        leases = (await queue.lease(10_000, AT)).leases
        assert len(leases) == 3_000
        assert all(await queue.started([note_of(each) for each in leases], AT))
        assert all(await queue.finish([end_of(each) for each in leases], AT))
        await queue.acknowledge(queue.head_seq, AT)
        assert await queue.counts() == QueueCounts(queued=0, running=0, retrying=0, dead=0)
        assert (await queue.lease(1, AT)).leases == []


# --- full --------------------------------------------------------------------------------------------


async def test_without_memory_nothing_new_begins_but_everything_can_end() -> None:
    async with queue_of_its_own() as (server, queue):
        live, waits = spawn(spec=spec(priority=9)), spawn()
        await take_in(queue, live, waits)
        [lease] = (await queue.lease(1, AT)).leases
        assert not await queue.almost_full()
        with Redis.from_url(server.url) as client:
            client.config_set("maxmemory", MIB)
            head = queue.head_seq
            for call in (take_in(queue, spawn()), queue.lease(1, AT)):
                with pytest.raises(UnavailableError, match=r"OOM|memory"):
                    await call
            assert (queue.head_seq, await queue.counts()) == (
                head,
                QueueCounts(queued=1, running=1, retrying=0, dead=0),
            )
            assert await queue.started([note_of(lease)], AT) == [True]
            assert await queue.finish([end_of(lease)], AT) == [True]
            assert (await take_in(queue, kill(agent=waits.agent)))[0].kind == "accepted"
            assert await queue.look(new_id()) is None
            await queue.acknowledge(queue.head_seq, AT)
            await queue.take_over(host="here", epoch=1, incarnation=1, now_ms=AT)
            assert await queue.events(0, 10) == []


async def test_a_server_at_four_fifths_of_its_memory_is_almost_full() -> None:
    async with queue_of_its_own() as (server, queue):
        with Redis.from_url(server.url) as client:
            used = client.info("memory")["used_memory"]
            client.config_set("maxmemory", int(used * 1.1))
        assert await queue.almost_full()
        with Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 0)
        assert await queue.almost_full()  # as of the last look, a moment ago
