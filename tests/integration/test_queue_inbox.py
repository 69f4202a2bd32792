"""What a command does when it comes again, too late, too early or altered: inbox, kills, tombstones, wanted states."""

from collections.abc import Iterator

import pytest
from redis import Redis

from shared.envelope import Refusal
from shared.messages import Cordon, Drain, EventKind, RefreshTrust, Remove, Resume
from spoke.queue import names
from tests.helpers.builders import kill, new_id, pause, spawn, spec, status
from tests.helpers.valkey import (
    AT,
    MINUTE,
    ValkeyServer,
    end_of,
    new_spoke,
    note_of,
    owned_queue,
    running_valkey,
    take_in,
    told,
    trusted,
)

ASKED = {"actor": "tester", "tenant": "default", "trace": ""}
# How long an id or a mark outlives the acknowledgement of its event: 10 min, 30 s of skew, then the whole minute.
MEMORY = 630_000


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with running_valkey() as running:
        yield running


def kinds_of(verdicts) -> list[str]:
    return [verdict.kind.value for verdict in verdicts]


# --- again -------------------------------------------------------------------------------------------


async def test_the_same_item_again_has_no_effect(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        assert kinds_of(await take_in(queue, command, command)) == ["accepted", "duplicate"]
        assert kinds_of(await take_in(queue, command)) == ["duplicate"]
        assert await told(queue) == [("queued", command.agent, "")]


async def test_the_same_id_with_other_bytes_changes_no_state_and_is_said_once(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        forged = [spawn(id=command.id), kill(id=command.id, agent=command.agent)]
        await take_in(queue, command)
        for other in forged:
            assert kinds_of(await take_in(queue, other)) == ["equivocation"]
        assert await told(queue, 1) == [("refused", forged[0].agent, "equivocation")]
        [event] = await queue.events(1, 10)
        assert (event.cmd, event.cmd_sha256) == (command.id, trusted(forged[0]).sha256)
        assert (await queue.counts()).queued == 1
        await queue.acknowledge(2, AT)
        await take_in(queue, forged[1])
        assert await told(queue, 2) == [("refused", command.agent, "equivocation")]


async def test_an_id_is_known_until_ten_and_a_half_minutes_after_its_acknowledgement(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        assert kinds_of(await take_in(queue, command, now_ms=AT + 60 * MINUTE)) == ["duplicate"]
        acknowledged = AT + 60 * MINUTE
        await queue.acknowledge(1, acknowledged)
        assert await queue.events(0, 10) == []
        late = acknowledged + MEMORY
        assert kinds_of(await take_in(queue, command, now_ms=late)) == ["duplicate"]
        # Forgotten: but the entry itself is still here, so the command only hears of it.
        late += 2 * MINUTE
        assert kinds_of(await take_in(queue, command, now_ms=late)) == ["no_effect"]
        assert await told(queue) == [("queued", command.agent, "")]


async def test_acknowledged_ids_and_marks_lie_in_one_key_per_minute_that_expires_whole(
    server: ValkeyServer,
) -> None:
    spoke = new_spoke()
    async with owned_queue(server, spoke) as queue:
        commands = [spawn() for _ in range(4)]
        for n, command in enumerate(commands):
            await take_in(queue, command)
            [lease] = (await queue.lease(1, AT + n * MINUTE)).leases
            await queue.finish([end_of(lease)], AT + n * MINUTE)
            await queue.acknowledge(queue.head_seq, AT + n * MINUTE)
        with Redis.from_url(server.url) as client:
            keys = sorted(client.keys(names.root(spoke) + "*"))
            past = [key for key in keys if b":past:" in key]
            assert len(past) == 4
            for key in past:
                assert client.hlen(key) == 2  # the id and the mark
                minute = int(key.rpartition(b":")[2])
                assert client.pexpiretime(key) == minute * MINUTE
                assert 0 < minute * MINUTE - AT - MEMORY <= 4 * MINUTE
            assert set(keys) - set(past) == {names.key(spoke, "META").encode()} | {
                key for key in keys if key.endswith((b":events", b":idle"))
            }


async def test_an_acknowledgement_of_what_was_never_said_has_no_effect(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        await take_in(queue, spawn(), spawn())
        await queue.acknowledge(3, AT)
        assert len(await queue.events(0, 10)) == 2
        await queue.acknowledge(1, AT)
        await queue.acknowledge(1, AT)
        await queue.acknowledge(0, AT)
        assert [event.seq for event in await queue.events(0, 10)] == [2]


async def test_thousands_of_events_are_acknowledged_in_pieces(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        for _ in range(10):
            await take_in(queue, *(pause(rev=1) for _ in range(250)))
        await queue.acknowledge(2_400, AT)
        assert [event.seq for event in await queue.events(0, 10_000)] == [*range(2_401, 2_501)]


async def test_an_acknowledged_queued_event_lets_no_later_mark_go(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        await take_in(queue, kill(agent=command.agent))
        await queue.acknowledge(2, AT)
        later = AT + 60 * MINUTE
        await queue.acknowledge(3, later)
        again = spawn(agent=command.agent)
        assert kinds_of(await take_in(queue, again, now_ms=later + MEMORY)) == ["no_effect"]
        assert (await queue.counts()).queued == 0


async def test_a_mark_waits_for_the_acknowledgement_of_its_own_end(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn(gen=1)
        await take_in(queue, command)
        for gen in (1, 5):
            await take_in(queue, kill(agent=command.agent, gen=gen))
        await queue.acknowledge(3, AT)  # the end of generation 1
        later = AT + 60 * MINUTE
        await queue.acknowledge(queue.head_seq, later)
        again = spawn(agent=command.agent, gen=5)
        assert kinds_of(await take_in(queue, again, now_ms=later + MEMORY)) == ["no_effect"]


async def test_a_lower_mark_of_the_same_minute_does_not_hide_a_higher_one(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        command = spawn(gen=3)
        await take_in(queue, command)
        for gen in (3, 1):  # the second only answers that generation 1 is not here
            await take_in(queue, kill(agent=command.agent, gen=gen))
            await queue.acknowledge(queue.head_seq, AT)
        assert kinds_of(await take_in(queue, spawn(agent=command.agent, gen=3))) == ["no_effect"]


async def test_a_kill_after_the_end_does_not_deny_that_it_ran_here(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT)).leases
        await queue.finish([end_of(lease)], AT)
        await queue.acknowledge(queue.head_seq, AT)
        await take_in(queue, kill(agent=command.agent))
        head = queue.head_seq
        assert kinds_of(await take_in(queue, spawn(agent=command.agent))) == ["no_effect"]
        assert queue.head_seq == head


# --- refused -----------------------------------------------------------------------------------------


async def test_the_gates_no_is_told_and_remembered(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        barred, full = spawn(), spawn()
        refused = {
            barred.id: (Refusal.POLICY, "no mount `secrets`"),
            full.id: (Refusal.QUEUE_FULL, ""),
        }
        verdicts = await take_in(queue, barred, full, refused=refused)
        assert [(v.kind.value, v.reason) for v in verdicts] == [
            ("refused", "policy: no mount `secrets`"),
            ("refused", "queue_full"),
        ]
        assert [reason for _, _, reason in await told(queue)] == [v.reason for v in verdicts]
        assert kinds_of(await take_in(queue, barred)) == ["duplicate"]


async def test_a_kill_is_taken_in_whatever_the_gate_says(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        order = kill()
        verdicts = await take_in(queue, order, refused={order.id: (Refusal.POLICY, "no")})
        assert kinds_of(verdicts) == ["accepted"]


async def test_a_full_spoke_and_a_reached_cap_refuse_spawns_but_nothing_else(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        verdicts = await take_in(queue, spawn(), pause(rev=1), full=True)
        assert [(v.kind.value, v.reason) for v in verdicts] == [
            ("refused", "queue_full"),
            ("accepted", ""),
        ]
        await take_in(queue, Resume(id=new_id(), rev=2, **ASKED))
        assert kinds_of(await take_in(queue, spawn(), spawn(), spawn(), cap=2)) == [
            "accepted",
            "accepted",
            "refused",
        ]
        [lease] = (await queue.lease(1, AT)).leases  # what is leased does not count
        assert kinds_of(await take_in(queue, spawn(), spawn(), cap=2)) == ["accepted", "refused"]
        retry = end_of(lease, EventKind.RETRYING, retry_at=AT + 9)
        await queue.finish([retry], AT)  # what is to be retried does
        assert kinds_of(await take_in(queue, spawn(), cap=3)) == ["refused"]


async def test_a_query_is_no_matter_for_the_queue(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        with pytest.raises(ValueError, match="query"):
            await take_in(queue, status())


# --- generations -------------------------------------------------------------------------------------


async def test_a_higher_generation_waits_until_the_lower_one_is_gone(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        first = spawn(gen=2)
        await take_in(queue, first)
        verdicts = await take_in(queue, spawn(agent=first.agent, gen=3))
        assert [(v.kind.value, v.reason) for v in verdicts] == [("refused", "superseded")]
        older = spawn(agent=first.agent, gen=1)
        assert kinds_of(await take_in(queue, older)) == ["no_effect"]
        assert (await told(queue))[-1] == ("killed", first.agent, "not_here")
        [lease] = (await queue.lease(9, AT)).leases
        await queue.finish([end_of(lease)], AT)
        assert kinds_of(await take_in(queue, spawn(agent=first.agent, gen=3))) == ["accepted"]


async def test_another_command_for_what_is_here_hears_how_far_it_got(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        first = spawn()

        async def heard() -> tuple[str, int, int | None]:
            again = spawn(agent=first.agent)
            assert kinds_of(await take_in(queue, again)) == ["no_effect"]
            [event] = [e for e in await queue.events(0, 100) if e.cmd == again.id]
            return event.kind.value, event.attempt, event.retry_at

        await take_in(queue, first)
        assert await heard() == ("queued", 0, None)
        [lease] = (await queue.lease(1, AT)).leases
        assert await heard() == ("queued", 0, None)
        await queue.started([note_of(lease)], AT)
        assert await heard() == ("running", 1, None)
        await queue.finish([end_of(lease, EventKind.RETRYING, retry_at=AT + 7)], AT)
        assert await heard() == ("retrying", 1, AT + 7)
        assert (await queue.counts()).retrying == 1


async def test_a_generation_that_ended_is_not_run_again(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        first = spawn(gen=5)
        await take_in(queue, first)
        [lease] = (await queue.lease(1, AT)).leases
        await queue.finish([end_of(lease)], AT)
        head = queue.head_seq
        # Its outcome's event answers; a lower one was never here and never will be.
        assert kinds_of(await take_in(queue, spawn(agent=first.agent, gen=5))) == ["no_effect"]
        assert queue.head_seq == head
        assert kinds_of(await take_in(queue, spawn(agent=first.agent, gen=4))) == ["no_effect"]
        assert await told(queue, head) == [("killed", first.agent, "not_here")]
        await queue.acknowledge(queue.head_seq, AT)
        again = spawn(agent=first.agent, gen=5)
        assert kinds_of(await take_in(queue, again, now_ms=AT + MEMORY)) == ["no_effect"]


# --- kill and remove ---------------------------------------------------------------------------------


async def test_a_kill_ends_what_waits(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        order = kill(agent=command.agent, reason="enough")
        [verdict] = await take_in(queue, order)
        assert (verdict.kind.value, verdict.kill) == ("accepted", False)
        events = await queue.events(1, 10)
        assert [(e.kind.value, e.cmd, e.reason) for e in events] == [
            ("kill_accepted", order.id, ""),
            ("killed", command.id, "enough"),
        ]
        assert (await queue.lease(1, AT)).leases == []


async def test_a_kill_ends_what_waits_for_its_retry(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT)).leases
        await queue.finish([end_of(lease, EventKind.RETRYING, retry_at=AT + 5)], AT)
        await take_in(queue, kill(agent=command.agent))
        leased = await queue.lease(1, AT + 10)
        assert (leased.leases, leased.next_due_ms) == ([], None)
        assert await queue.look(command.agent) is None


async def test_a_kill_of_a_live_attempt_is_marked_until_it_has_ended(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT)).leases
        order = kill(agent=command.agent, grace_ms=900, reason="first")
        assert [v.kill for v in await take_in(queue, order)] == [True]
        assert [v.kill for v in await take_in(queue, order)] == [True]  # again, and still alive
        await take_in(queue, kill(agent=command.agent, grace_ms=100, reason="second"))
        await take_in(queue, kill(agent=command.agent, grace_ms=500, reason="more patient"))
        await take_in(queue, kill(agent=command.agent, grace_ms=None, reason="third"))
        [found] = await queue.leased()
        assert (found.kill, found.kill_grace_ms, found.kill_reason) == (True, 100, "first")
        entry = await queue.look(command.agent)
        assert entry is not None
        assert entry.kill
        await queue.finish([end_of(lease, EventKind.KILLED, reason="first")], AT)
        assert [v.kill for v in await take_in(queue, order)] == [False]
        assert (await told(queue))[-1] == ("killed", command.agent, "first")


@pytest.mark.parametrize("how", ["retry", "hand_back"])
async def test_what_was_killed_does_not_come_back(server: ValkeyServer, how: str) -> None:
    async with owned_queue(server) as queue:
        command = spawn()
        await take_in(queue, command)
        [lease] = (await queue.lease(1, AT)).leases
        await take_in(queue, kill(agent=command.agent, reason="enough"))
        if how == "retry":
            assert await queue.finish([end_of(lease, EventKind.RETRYING, retry_at=AT)], AT) == [
                True
            ]
        else:
            assert await queue.hand_back([note_of(lease)], AT) == [True]
        assert (await told(queue))[-1] == ("killed", command.agent, "enough")
        assert (await queue.lease(1, AT + MINUTE)).leases == []


async def test_a_kill_that_overtakes_its_spawn_leaves_a_tombstone(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        order = kill(gen=4)
        await take_in(queue, order)
        assert await told(queue) == [
            ("kill_accepted", order.agent, ""),
            ("killed", order.agent, "not_here"),
        ]
        late = [spawn(agent=order.agent, gen=gen) for gen in (3, 4)]
        assert kinds_of(await take_in(queue, *late)) == ["no_effect", "no_effect"]
        said = await queue.events(2, 10)
        assert [(e.kind.value, e.cmd, e.gen, e.attempt, e.reason) for e in said] == [
            ("killed", late[0].id, 3, 0, "not_here"),
            ("killed", late[1].id, 4, 0, "not_here"),
        ]
        assert kinds_of(await take_in(queue, spawn(agent=order.agent, gen=5))) == ["accepted"]


async def test_a_tombstone_outlives_its_acknowledgement(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        order = kill()
        await take_in(queue, order)
        await queue.acknowledge(2, AT)
        late = spawn(agent=order.agent)
        assert kinds_of(await take_in(queue, late, now_ms=AT + MEMORY)) == ["no_effect"]
        assert (await told(queue))[-1] == ("killed", order.agent, "not_here")


async def test_a_kill_reaches_up_to_its_generation_and_not_beyond(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        command = spawn(gen=3)
        await take_in(queue, command)
        await take_in(queue, kill(agent=command.agent, gen=2))
        assert (await told(queue))[-1] == ("killed", command.agent, "not_here")
        entry = await queue.look(command.agent)
        assert entry is not None
        assert entry.gen == 3


async def test_a_kill_that_reaches_further_is_confirmed_for_both_generations(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        waits, lives = spawn(gen=2), spawn(gen=2, spec=spec(priority=9))
        await take_in(queue, waits, lives)
        [lease] = (await queue.lease(1, AT)).leases
        await take_in(queue, *(kill(agent=each.agent, gen=6) for each in (waits, lives)))
        ends = [(e.agent, e.gen) for e in await queue.events(0, 50) if e.kind == "killed"]
        assert ends == [(waits.agent, 2), (waits.agent, 6)]
        await queue.finish([end_of(lease, EventKind.KILLED)], AT)
        ends = [(e.agent, e.gen) for e in await queue.events(0, 50) if e.kind == "killed"]
        assert ends[2:] == [(lives.agent, 2), (lives.agent, 6)]
        late = [spawn(agent=each.agent, gen=6) for each in (waits, lives)]
        assert kinds_of(await take_in(queue, *late)) == ["no_effect", "no_effect"]


async def test_remove_drops_what_waits_and_refuses_what_runs(server: ValkeyServer) -> None:
    async with owned_queue(server) as queue:
        waits, lives = spawn(), spawn(spec=spec(priority=9))
        await take_in(queue, waits, lives)
        [lease] = (await queue.lease(1, AT)).leases
        agents = (waits.agent, lives.agent, new_id())
        removals = [Remove(id=new_id(), agent=agent, gen=1, **ASKED) for agent in agents]
        verdicts = await take_in(queue, *removals)
        assert [(v.kind.value, v.reason) for v in verdicts] == [
            ("accepted", ""),
            ("refused", "running"),
            ("accepted", ""),
        ]
        assert await told(queue, 2) == [
            ("kill_accepted", agents[0], ""),
            ("killed", agents[0], "removed"),
            ("refused", agents[1], "running"),
            ("kill_accepted", agents[2], ""),
            ("killed", agents[2], "not_here"),
        ]
        assert [each.agent for each in await queue.leased()] == [lease.agent]
        assert not (await queue.leased())[0].kill


async def test_within_one_envelope_each_item_sees_what_the_ones_before_it_did(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        first = spawn()
        remove = Remove(id=new_id(), agent=first.agent, gen=1, **ASKED)
        second = spawn(agent=first.agent, gen=2)
        again = spawn(agent=first.agent, gen=1)
        verdicts = await take_in(queue, first, remove, again, second, cap=1)
        assert kinds_of(verdicts) == ["accepted", "accepted", "no_effect", "accepted"]
        [lease] = (await queue.lease(5, AT)).leases
        assert (lease.gen, lease.item) == (2, trusted(second).raw)


# --- wanted states -----------------------------------------------------------------------------------


async def test_the_wanted_state_with_the_highest_revision_holds(server: ValkeyServer) -> None:
    spoke = new_spoke()

    async def found() -> tuple[int, bool, bool]:
        async with owned_queue(server, spoke) as other:
            taken = await other.take_over(host="here", epoch=1, incarnation=1, now_ms=AT)
            return taken.rev, taken.paused, taken.cordoned

    async def apply(command) -> str:
        async with owned_queue(server, spoke) as queue:
            return (await take_in(queue, command))[0].kind.value

    asked = {"id": new_id(), **ASKED}
    for command, kind, state in (
        (pause(rev=5), "accepted", (5, True, False)),
        (Resume(**asked | {"id": new_id()}, rev=5), "no_effect", (5, True, False)),
        (Resume(**asked | {"id": new_id()}, rev=6), "accepted", (6, False, False)),
        (Drain(**asked | {"id": new_id()}, rev=7), "accepted", (7, False, True)),
        (Cordon(**asked | {"id": new_id()}, rev=6, on=False), "no_effect", (7, False, True)),
        (Cordon(**asked | {"id": new_id()}, rev=8, on=False), "accepted", (8, False, False)),
        (Cordon(**asked | {"id": new_id()}, rev=9, on=True), "accepted", (9, False, True)),
    ):
        assert (await apply(command), await found()) == (kind, state)


async def test_every_wanted_state_is_answered_by_an_event_of_no_agent(
    server: ValkeyServer,
) -> None:
    async with owned_queue(server) as queue:
        asked = [pause(rev=2), pause(rev=1), RefreshTrust(id=new_id(), version=3, **ASKED)]
        assert kinds_of(await take_in(queue, *asked)) == ["accepted", "no_effect", "accepted"]
        events = await queue.events(0, 10)
        assert [(e.kind.value, e.cmd, e.agent, e.gen) for e in events] == [
            ("applied", each.id, None, 0) for each in asked
        ]
