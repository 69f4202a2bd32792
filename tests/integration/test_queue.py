"""Whose turn it is, how attempts end, and who may say so: the spoke's queue on a real Valkey."""

from collections.abc import Iterator

import pytest
from redis import Redis

from shared.errors import ConfigError, FencedError
from shared.messages import EventKind, Exit, ExitKind, QueueCounts
from spoke.queue import names
from spoke.queue.entries import Note
from spoke.queue.queue import Queue, digest_inventory
from tests.helpers.builders import kill, new_id, pause, spawn, spec
from tests.helpers.valkey import (
    AT,
    MINUTE,
    ValkeyServer,
    end_of,
    lease_agents,
    new_spoke,
    note_of,
    owned_queue,
    running_valkey,
    take_in,
    told,
    trusted,
)

NOBODY = QueueCounts(queued=0, running=0, retrying=0, dead=0)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with running_valkey() as running:
        yield running


def waiting(priority: int = 5, waited_ms: int = 0, tenant: str = "default", weight: int = 1):
    arrived = AT - waited_ms
    return spawn(tenant=tenant, spec=spec(priority=priority, arrived_ms=arrived, weight=weight))


# --- whose turn it is --------------------------------------------------------------------------------


async def test_a_higher_priority_goes_first_and_equals_go_by_arrival(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        low, late, early, urgent = waiting(3), waiting(5, 1), waiting(5, 2), waiting(10)
        await take_in(queue, low, late, early, urgent)
        turns = [urgent.agent, early.agent, late.agent, low.agent]
        places = [(await queue.look(agent)).position for agent in turns]  # type: ignore[union-attr]
        assert places == [1, 2, 3, 4]
        assert await lease_agents(queue, 10) == turns


@pytest.mark.parametrize(
    ("priority", "waited_min", "other", "goes_first"),
    [
        (5, 10, 6, True),  # one step: equal, and it came first
        (5, 9, 6, False),
        (5, 30, 8, True),
        (5, 300, 9, False),  # at most three steps
        (8, 300, 9, True),
        (9, 300, 10, False),  # never reaches 10
        (1, 30, 4, True),
    ],
)
async def test_waiting_raises_by_one_every_ten_minutes_at_most_by_three_never_to_ten(
    server: ValkeyServer, priority: int, waited_min: int, other: int, goes_first: bool
) -> None:
    async with owned_queue(server) as queue:
        old, new = waiting(priority, waited_min * MINUTE), waiting(other)
        await take_in(queue, new, old)
        entry = await queue.look(old.agent)
        assert entry is not None
        assert entry.position == (1 if goes_first else 2)
        assert (await lease_agents(queue, 1) == [old.agent]) == goes_first


async def test_tenants_share_by_weight_whatever_one_of_them_piles_up(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        heavy = [waiting(10, 5, "heavy", 3) for _ in range(30)]
        light = [waiting(1, 0, "light", 1) for _ in range(30)]
        await take_in(queue, *heavy, *light)
        turns = await lease_agents(queue, 20)
        assert len(set(turns) & {each.agent for each in heavy}) == 15


async def test_a_tenant_that_comes_later_neither_waits_nor_catches_up(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, *(waiting(tenant="first") for _ in range(30)))
        await lease_agents(queue, 20)
        late = [waiting(tenant="late") for _ in range(10)]
        await take_in(queue, *late)
        turns = await lease_agents(queue, 10)
        assert len(set(turns) & {each.agent for each in late}) == 5


async def test_who_comes_in_dribs_gets_no_more_than_its_share(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, *(waiting(tenant="steady", weight=9) for _ in range(40)))
        await take_in(queue, dribbling := waiting(10, tenant="dribs"))
        turns = 0
        for _ in range(30):
            if await lease_agents(queue, 1) == [dribbling.agent]:
                turns += 1
                await take_in(queue, dribbling := waiting(10, tenant="dribs"))
        assert turns == 3


async def test_tenants_that_are_long_idle_are_forgotten(server: ValkeyServer) -> None:
    spoke = new_spoke()
    async with owned_queue(server, spoke) as queue:
        await take_in(queue, *(waiting(tenant="steady") for _ in range(40)))
        await take_in(queue, *(waiting(tenant=f"once-{n}") for n in range(20)))
        await lease_agents(queue, 25)
        with Redis.from_url(server.url) as client:
            assert client.exists(names.key(spoke, "IDLE")) == 0


async def test_who_was_alone_does_not_pay_for_it_later(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, *(waiting(tenant="early") for _ in range(20)))
        await lease_agents(queue, 20)
        early = [waiting(tenant="early") for _ in range(10)]
        late = [waiting(tenant="late") for _ in range(10)]
        await take_in(queue, *late, *early)
        assert len(set(await lease_agents(queue, 10)) & {each.agent for each in early}) == 5


async def test_many_of_one_priority_come_in_their_order_over_several_calls(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        agents = [waiting(5, 100 - n) for n in range(50)]
        await take_in(queue, *reversed(agents))
        turns = await lease_agents(queue, 33) + await lease_agents(queue, 100)
        assert turns == [each.agent for each in agents]
        assert (await queue.counts()).running == 50


async def test_nothing_is_leased_while_paused_but_deadlines_pass(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        doomed = spawn(spec=spec(arrived_ms=AT, deadline_ms=AT + 10))
        patient = waiting()
        await take_in(queue, pause(rev=1), doomed, patient)
        leased = await queue.lease(10, AT)
        assert (leased.leases, leased.next_due_ms) == ([], AT + 10)
        assert (await queue.lease(10, AT + 10)).next_due_ms is None
        assert (await told(queue))[-1] == ("expired", doomed.agent, "deadline")
        assert await queue.look(doomed.agent) is None
        assert await queue.look(patient.agent) is not None


# --- how attempts end --------------------------------------------------------------------------------


async def test_an_attempt_from_acceptance_to_success(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = waiting()
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT + 1)).leases
        assert (lease.attempt, lease.retries, lease.kill) == (1, 0, False)
        assert lease.item == trusted(command).raw
        assert await queue.started([note_of(lease)], AT + 2) == [True]
        assert await queue.started([note_of(lease)], AT + 3) == [True]
        assert await queue.counts() == QueueCounts(queued=0, running=1, retrying=0, dead=0)
        assert await queue.finish([end_of(lease)], AT + 4) == [True]
        events = await queue.events(0, 10)
        assert [(e.seq, e.kind, e.attempt, e.at - AT) for e in events] == [
            (1, EventKind.QUEUED, 0, 0),
            (2, EventKind.RUNNING, 1, 2),
            (3, EventKind.SUCCEEDED, 1, 4),
        ]
        assert {e.cmd for e in events} == {command.id}
        assert {e.cmd_sha256 for e in events} == {trusted(command).sha256}
        assert events[-1].exit == Exit(kind=ExitKind.EXITED, code=0)
        assert await queue.counts() == NOBODY


async def test_a_retry_waits_and_comes_back_to_its_old_place(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        first, second = waiting(5, 2), waiting(5, 1)
        await take_in(queue, first, second)
        [lease] = (await queue.lease(1, AT)).leases
        await queue.started([note_of(lease)], AT)
        end = end_of(lease, EventKind.RETRYING, reason="exit 1", retry_at=AT + 500)
        assert await queue.finish([end], AT + 1) == [True]
        assert (await queue.counts()).retrying == 1
        [*_, event] = await queue.events(0, 10)
        assert (event.kind, event.retry_at, event.reason) == (
            EventKind.RETRYING,
            AT + 500,
            "exit 1",
        )
        leased = await queue.lease(0, AT + 499)
        assert leased.next_due_ms == AT + 500
        [again] = (await queue.lease(1, AT + 500)).leases
        assert (again.agent, again.attempt, again.retries) == (first.agent, 2, 1)
        assert again.fence > lease.fence


async def test_used_up_retries_make_a_dead_letter(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, waiting())
        [lease] = (await queue.lease(1, AT)).leases
        await queue.finish([end_of(lease, EventKind.FAILED, reason="exit 1", dead=True)], AT)
        assert (await queue.counts()).dead == 1
        await queue.acknowledge(2, AT)
        assert await queue.counts() == NOBODY


async def test_an_attempt_that_never_ran_goes_back_uncounted(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        first, second = waiting(5, 2), waiting(5, 1)
        await take_in(queue, first, second)
        [lease] = (await queue.lease(1, AT)).leases
        assert await queue.hand_back([note_of(lease)], AT) == [True]
        assert await queue.hand_back([note_of(lease)], AT) == [False]
        [again] = (await queue.lease(1, AT)).leases
        assert (again.agent, again.attempt, again.retries) == (first.agent, 1, 0)
        assert again.fence > lease.fence


async def test_a_deadline_is_for_the_first_start_only(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        ran, never_ran, back = (
            spawn(spec=spec(arrived_ms=AT, deadline_ms=AT + 100)) for _ in range(3)
        )
        await take_in(queue, ran, never_ran, back)
        leases = {lease.agent: lease for lease in (await queue.lease(3, AT)).leases}
        assert (await queue.lease(3, AT)).next_due_ms is None
        await queue.started([note_of(leases[ran.agent])], AT)
        retry = {"kind": EventKind.RETRYING, "retry_at": AT + 1_000}
        await queue.finish([end_of(leases[each.agent], **retry) for each in (ran, never_ran)], AT)
        await queue.hand_back([note_of(leases[back.agent])], AT)
        await queue.lease(0, AT + 100)
        expired = {agent for kind, agent, _ in await told(queue) if kind == "expired"}
        assert expired == {never_ran.agent, back.agent}
        assert (await queue.counts()).retrying == 1


async def test_a_batch_says_for_each_whether_it_was_current(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, waiting(), waiting())
        one, two = (await queue.lease(2, AT)).leases
        stranger = Note(agent=new_id(), gen=1, attempt=1, fence=one.fence)
        notes = [note_of(one), stranger, note_of(two)]
        assert await queue.started(notes, AT) == [True, False, True]
        assert await queue.finish([end_of(one), end_of(one), end_of(two)], AT) == [
            True,
            False,
            True,
        ]
        kinds = [kind for kind, _, _ in await told(queue)]
        assert kinds == ["queued"] * 2 + ["running"] * 2 + ["succeeded"] * 2


@pytest.mark.parametrize("change", [{"fence": 7}, {"attempt": 2}, {"gen": 2}])
async def test_a_stale_note_changes_nothing(server: ValkeyServer, change: dict[str, int]) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, waiting())
        [lease] = (await queue.lease(1, AT)).leases
        fields = {"gen": 1, "attempt": 1, "fence": lease.fence} | change
        note = Note(agent=lease.agent, **fields)
        head = queue.head_seq
        assert await queue.started([note], AT) == [False]
        assert await queue.hand_back([note], AT) == [False]
        end = end_of(lease)
        assert await queue.finish([type(end)(agent=lease.agent, kind=end.kind, **fields)], AT) == [
            False
        ]
        assert queue.head_seq == head
        assert [each.agent for each in await queue.leased()] == [lease.agent]


async def test_what_is_no_end_is_refused_before_it_is_sent(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, waiting())
        [lease] = (await queue.lease(1, AT)).leases
        for end in (
            end_of(lease, EventKind.QUEUED),
            end_of(lease, EventKind.RETRYING),
            end_of(lease, EventKind.FAILED, retry_at=AT),
        ):
            with pytest.raises(ValueError, match=r"end|retry_at"):
                await queue.finish([end], AT)


async def test_the_clock_never_goes_back(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, waiting(), now_ms=AT + 5_000)
        await take_in(queue, waiting(), now_ms=AT)
        assert [e.at for e in await queue.events(0, 10)] == [AT + 5_000, AT + 5_000]


# --- who may say so ----------------------------------------------------------------------------------


async def test_a_new_daemon_fences_the_old_one_out(server: ValkeyServer) -> None:
    spoke = new_spoke()
    async with owned_queue(server, spoke) as old, owned_queue(server, spoke) as new:
        await take_in(new, waiting())
        head = new.head_seq
        for call in (
            take_in(old, waiting()),
            take_in(old, kill()),
            old.lease(1, AT),
            old.started([], AT),
            old.finish([], AT),
            old.hand_back([], AT),
            old.leased(),
            old.events(0, 1),
            old.acknowledge(1, AT),
            old.counts(),
            old.look(new_id()),
            old.inventory(),
            old.restart_journal(2, AT),
        ):
            with pytest.raises(FencedError):
                await call
        assert len((await new.lease(9, AT)).leases) == 1
        assert new.head_seq == head


async def test_nothing_is_done_before_the_queue_is_taken_over(server: ValkeyServer) -> None:
    queue = await Queue.open(server.url, new_spoke(), allow_volatile=False)
    with pytest.raises(FencedError):
        await queue.lease(1, AT)
    await queue.close()


async def test_the_epoch_rises_above_state_folder_and_queue(server: ValkeyServer) -> None:
    spoke = new_spoke()
    async with owned_queue(server, spoke, epoch=7) as queue:
        seen = [
            (await queue.take_over(host="here", epoch=epoch, incarnation=9, now_ms=AT)).epoch
            for epoch in (3, 20, 20)
        ]
    assert seen == [8, 20, 21]


async def test_a_queue_belongs_to_one_host(server: ValkeyServer) -> None:
    spoke = new_spoke()
    async with owned_queue(server, spoke) as queue:
        with pytest.raises(ConfigError, match="here"):
            async with owned_queue(server, spoke, host="elsewhere"):
                pass
        await queue.counts()


async def test_a_successor_finds_everything_and_ends_what_was_leased(
    server: ValkeyServer,
) -> None:
    spoke = new_spoke()
    command, other = waiting(), waiting()
    async with owned_queue(server, spoke) as queue:
        await take_in(queue, command, other, pause(rev=4))
        await take_in(queue, kill(agent=other.agent, gen=3, grace_ms=5, reason="enough"))
        resumed = await queue.lease(5, AT)
        assert resumed.leases == []
    async with owned_queue(server, spoke) as queue:
        taken = await queue.take_over(host="here", epoch=1, incarnation=5, now_ms=AT)
        assert (taken.incarnation, taken.head_seq, taken.rev, taken.paused) == (1, 6, 4, True)
        assert taken.fence == taken.epoch << 32


async def test_a_successor_adopts_leases_under_their_old_fences(server: ValkeyServer) -> None:
    spoke = new_spoke()
    command = waiting()
    async with owned_queue(server, spoke) as queue:
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT)).leases
        await take_in(queue, kill(agent=command.agent, gen=1, grace_ms=5, reason="enough"))
    async with owned_queue(server, spoke) as queue:
        [found] = await queue.leased()
        assert found.item == trusted(command).raw
        assert (found.fence, found.kill, found.kill_grace_ms, found.kill_reason) == (
            lease.fence,
            True,
            5,
            "enough",
        )
        assert (await queue.lease(1, AT)).leases == []
        assert await queue.finish([end_of(found, EventKind.KILLED, reason="enough")], AT) == [True]
        assert await queue.counts() == NOBODY


async def test_two_queues_on_one_server_know_nothing_of_each_other(server: ValkeyServer) -> None:
    async with owned_queue(server) as one, owned_queue(server) as two:
        await take_in(one, waiting())
        assert (await one.counts()).queued == 1
        assert await two.counts() == NOBODY


async def test_the_inventory_names_everything_that_is_not_closed(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        assert await queue.inventory() == digest_inventory({})
        one, two, three = waiting(), waiting(), waiting()
        await take_in(queue, one, two, three)
        leases = {lease.agent: lease for lease in (await queue.lease(2, AT)).leases}
        await queue.finish([end_of(leases[one.agent])], AT)
        assert await queue.inventory() == digest_inventory({two.agent: 1, three.agent: 1})


# --- a new incarnation -------------------------------------------------------------------------------


async def test_a_new_incarnation_keeps_only_what_holds_a_lease(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        live, ended, queued = waiting(9), waiting(8), waiting(7)
        await take_in(queue, live, ended, queued)
        first, second = (await queue.lease(2, AT)).leases
        await queue.started([note_of(first)], AT)
        await queue.finish([end_of(second)], AT)
        await queue.restart_journal(2, AT)
        assert queue.head_seq == 0
        assert await queue.events(0, 10) == []
        assert await queue.counts() == QueueCounts(queued=0, running=1, retrying=0, dead=0)
        assert await queue.started([note_of(first)], AT) == [True]
        await queue.restart_journal(2, AT)  # asked again, since the answer was lost
        assert await told(queue) == [("running", live.agent, "")]
        verdicts = await take_in(
            queue, live, ended, queued
        )  # the hub sends all that is open again
        assert [v.kind for v in verdicts] == ["no_effect", "accepted", "accepted"]
        assert (await told(queue, 1))[0] == ("running", live.agent, "")
        assert await lease_agents(queue, 5) == [ended.agent, queued.agent]
