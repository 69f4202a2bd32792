"""The queue against its model: any sequence of calls, and after each one both say the same."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from shared.messages import Cordon, Drain, EventKind, Remove, Resume
from shared.trust import TrustedItem
from spoke.queue import names
from spoke.queue.entries import End, Note
from spoke.queue.queue import Queue, digest_inventory
from tests.helpers.builders import kill, new_id, pause, spawn, spec
from tests.helpers.queue_model import MINUTE, QueueModel
from tests.helpers.valkey import AT, ValkeyServer, new_spoke, running_valkey, trusted

T = TypeVar("T")

AGENTS = [new_id() for _ in range(5)]
ASKED = {"actor": "tester", "tenant": "default", "trace": ""}

agents = st.sampled_from(AGENTS)
gens = st.integers(1, 3)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    # Durability has its own tests: here only what the scripts do is looked at.
    with running_valkey(appendfsync="no") as running:
        yield running


class QueueMachine(RuleBasedStateMachine):
    """Runs every call on both; `runner` is the loop that the real queue lives on."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server, self.spoke = server, new_spoke()
        self.client = Redis.from_url(server.url)
        self.queue: Queue | None = None
        self.now = AT
        self.model = QueueModel()
        self.seen: list[TrustedItem[Any]] = []  # commands that may come again

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    @property
    def real(self) -> Queue:
        assert self.queue is not None
        return self.queue

    def newest(self) -> int:
        """The queue's clock as of its last change."""
        return int(self.client.hget(names.key(self.spoke, "META"), "newest") or 0)

    def touch(self) -> int:
        """The time of a call: what the queue keeps of the clock never goes back."""
        self.model.now = max(self.newest(), self.now)
        return self.now

    # --- daemons ---

    @initialize()
    def begin(self) -> None:
        self.take_over(3)

    @rule(epoch=st.integers(1, 9))
    def take_over(self, epoch: int) -> None:
        if self.queue is not None:
            self.run(self.queue.close())
        self.queue = self.run(Queue.open(self.server.url, self.spoke, allow_volatile=True))
        now = self.touch()
        self.model.take_over(epoch)
        taken = self.run(self.real.take_over(host="here", epoch=epoch, incarnation=1, now_ms=now))
        model = self.model
        assert (taken.epoch, taken.head_seq, taken.evt_ack) == (
            model.epoch,
            model.seq,
            model.evt_ack,
        )
        assert (taken.rev, taken.paused, taken.cordoned) == (
            model.rev,
            model.paused,
            model.cordoned,
        )
        assert taken.incarnation == model.incarnation

    @rule(more=st.integers(0, 2))
    def restart_journal(self, more: int) -> None:
        incarnation = self.model.incarnation + more - 1
        self.run(self.real.restart_journal(incarnation, self.touch()))
        self.model.restart_journal(incarnation)

    @rule(ms=st.sampled_from([1, 500, MINUTE, 5 * MINUTE, 11 * MINUTE, -2 * MINUTE]))
    def wait(self, ms: int) -> None:
        self.now = max(AT, self.now + ms)

    # --- commands ---

    def take_in(self, *items: TrustedItem[Any], cap: int = 4) -> None:
        now = self.touch()
        self.seen.extend(items)
        verdicts = self.run(self.real.intake(items, refused={}, full=False, cap=cap, now_ms=now))
        found = [(verdict.kind.value, verdict.kill) for verdict in verdicts]
        assert found == self.model.intake(items, cap)

    @rule(
        wanted=st.lists(st.tuples(agents, gens), min_size=1, max_size=4),
        tenant=st.sampled_from(["a", "b", "c"]),
        weight=st.sampled_from([1, 2, 7]),
        priority=st.sampled_from([1, 5, 7, 8, 9, 10]),
        times=st.tuples(
            st.sampled_from([0, 1, 10 * MINUTE, 25 * MINUTE]),
            st.sampled_from([None, None, 0, 400, 3 * MINUTE]),
        ),
    )
    def spawn(
        self,
        wanted: list[tuple[str, int]],
        tenant: str,
        weight: int,
        priority: int,
        times: tuple[int, int | None],
    ) -> None:
        waited, deadline = times
        what = spec(
            priority=priority,
            weight=weight,
            arrived_ms=self.now - waited,
            deadline_ms=None if deadline is None else self.now + deadline,
        )
        items = [spawn(agent=agent, gen=gen, tenant=tenant, spec=what) for agent, gen in wanted]
        self.take_in(*map(trusted, items))

    @rule(
        agent=agents,
        gen=gens,
        grace=st.sampled_from([None, 0, 9]),
        reason=st.sampled_from(["", "x"]),
    )
    def kill(self, agent: str, gen: int, grace: int | None, reason: str) -> None:
        self.take_in(trusted(kill(agent=agent, gen=gen, grace_ms=grace, reason=reason)))

    @rule(wanted=st.lists(st.tuples(agents, gens), min_size=1, max_size=3), again=gens)
    def remove_and_spawn(self, wanted: list[tuple[str, int]], again: int) -> None:
        removals = [Remove(id=new_id(), agent=agent, gen=gen, **ASKED) for agent, gen in wanted]
        self.take_in(*map(trusted, removals), trusted(spawn(agent=wanted[0][0], gen=again)))

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        self.take_in(data.draw(st.sampled_from(self.seen[-12:])))

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), agent=agents)
    def altered(self, data: st.DataObject, agent: str) -> None:
        before = data.draw(st.sampled_from(self.seen[-12:]))
        altered = trusted(kill(id=before.item.id, agent=agent, reason="altered"))
        seen = list(self.seen)
        self.take_in(altered)
        self.seen = seen

    @rule(
        rev=st.integers(1, 12),
        kind=st.sampled_from(["pause", "resume", "resume", "drain", "cordon"]),
    )
    def want(self, rev: int, kind: str) -> None:
        asked = {"id": new_id(), "rev": rev, **ASKED}
        wanted = {
            "pause": pause(rev=rev),
            "resume": Resume(**asked),
            "drain": Drain(**asked),
            "cordon": Cordon(**asked, on=bool(rev % 2)),
        }
        self.take_in(trusted(wanted[kind]))

    # --- attempts ---

    @rule(count=st.integers(0, 4), is_lost=st.sampled_from([False, False, False, True]))
    def lease(self, count: int, is_lost: bool) -> None:
        known, now = self.real._fence, self.touch()
        expected = self.model.lease(count)
        leases = self.run(self.real.lease(count, now)).leases
        assert [each.agent for each in leases] == expected
        for each in leases:
            entry = self.model.entries[each.agent]
            assert each.item == trusted(entry.spawn).raw
            assert (each.gen, each.attempt, each.fence) == (
                entry.spawn.gen,
                entry.attempt,
                entry.fence,
            )
            assert (each.retries, each.kill) == (entry.retries, entry.kill is not None)
        if is_lost:
            self.real._fence, self.model.unheard = known, expected

    def notes(self, data: st.DataObject) -> list[Note]:
        """Some of what is leased, and sometimes what is not."""
        found = [
            Note(
                agent=agent, gen=entry.spawn.gen, attempt=entry.attempt, fence=entry.fence - stale
            )
            for agent, entry in self.model.entries.items()
            for stale in (0, 0, 1)
        ]
        return data.draw(st.lists(st.sampled_from(found), max_size=3)) if found else []

    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        notes = self.notes(data)
        assert self.run(self.real.started(notes, self.touch())) == self.model.started(notes)

    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        notes = self.notes(data)
        assert self.run(self.real.hand_back(notes, self.touch())) == self.model.hand_back(notes)

    @rule(
        data=st.data(),
        kind=st.sampled_from(["succeeded", "failed", "killed", "retrying", "retrying"]),
        delay=st.sampled_from([0, 300, 2 * MINUTE]),
    )
    def finish(self, data: st.DataObject, kind: str, delay: int) -> None:
        ends = [
            End(
                agent=note.agent,
                gen=note.gen,
                attempt=note.attempt,
                fence=note.fence,
                kind=EventKind(kind),
                reason=kind,
                retry_at=self.now + delay if kind == "retrying" else None,
                dead=kind == "failed",
            )
            for note in self.notes(data)
        ]
        assert self.run(self.real.finish(ends, self.touch())) == self.model.finish(ends)

    # --- the hub ---

    @rule(less=st.integers(-1, 6))
    def acknowledge(self, less: int) -> None:
        evt_ack = max(0, self.model.seq - less)
        self.run(self.real.acknowledge(evt_ack, self.touch()))
        self.model.acknowledge(evt_ack)

    # --- what both must say ---

    @invariant()
    def they_say_the_same(self) -> None:
        if self.queue is not None:
            self.run(self._compare(self.queue))

    async def _compare(self, queue: Queue) -> None:
        model = self.model
        events = await queue.events(0, 10_000)
        assert [
            (e.seq, e.kind.value, e.cmd, e.agent, e.gen, e.attempt, e.reason) for e in events
        ] == [(e.seq, e.kind, e.cmd, e.agent, e.gen, e.attempt, e.reason) for e in model.events]
        counts = await queue.counts()
        assert (counts.queued, counts.running, counts.retrying) == model.counts()
        assert counts.dead == sum(e.kind == "failed" for e in model.events)
        gens = {agent: entry.spawn.gen for agent, entry in model.entries.items()}
        assert await queue.inventory() == digest_inventory(gens)
        for agent in AGENTS:
            await self._compare_entry(queue, agent)

    async def _compare_entry(self, queue: Queue, agent: str) -> None:
        found, entry = await queue.look(agent), self.model.entries.get(agent)
        assert (found is None) == (entry is None)
        if found is None or entry is None:
            return
        assert (found.state, found.attempt, found.kill) == (
            entry.state,
            entry.attempt,
            entry.kill is not None,
        )
        assert found.position == self.model.position(agent, self.newest())

    def teardown(self) -> None:
        try:
            if self.queue is not None:
                self.they_say_the_same()
                self.everything_can_end()
        finally:
            if self.queue is not None:
                self.run(self.queue.close())
            self.client.close()
            self.runner.close()

    def everything_can_end(self) -> None:
        """Whatever came before: killed and acknowledged, nothing is left but the memory of it."""
        for agent in AGENTS:
            self.take_in(trusted(kill(agent=agent, gen=9)))
        ends = [
            End(agent=a, gen=e.spawn.gen, attempt=e.attempt, fence=e.fence, kind=EventKind.KILLED)
            for a, e in self.model.entries.items()
        ]
        assert all(self.run(self.real.finish(ends, self.touch())))
        self.model.finish(ends)
        self.they_say_the_same()
        self.run(self.real.acknowledge(self.real.head_seq, self.touch()))
        assert self.run(self.real.events(0, 1)) == []
        assert self.run(self.real.counts()).queued == 0


def test_the_queue_does_what_its_model_says(server: ValkeyServer) -> None:
    run_state_machine_as_test(
        lambda: QueueMachine(server),
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None),
    )
