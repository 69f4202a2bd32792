"""Spawn, place, dispatch and ripen: the use cases on a database in memory, under a clock that stands."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from hub.control.spawn import Spawned
from hub.store import audit, outbox
from shared.errors import ConflictError
from shared.ids import sha256
from shared.lifecycle import State
from shared.messages import MAX_ITEMS, Kill, Spawn
from tests.helpers.hubs import HubInMemory, hub_in_memory, order

MINUTE = 60_000


@pytest.fixture
def hub() -> Iterator[HubInMemory]:
    with hub_in_memory() as hub:
        yield hub


def ids(results: list[Any]) -> list[str]:
    return [result.agent.id for result in results]


# --- spawn -------------------------------------------------------------------------------------------


def test_a_batch_has_one_result_per_order_in_their_order(hub: HubInMemory):
    results = hub.spawn_all([order(priority=n) for n in (3, 9, 1)])
    assert [result.agent.priority for result in results] == [3, 9, 1]
    assert ids(results) == sorted(ids(results))
    assert all(hub.agent(agent).state is State.PENDING for agent in ids(results))
    assert hub.kinds(ids(results)[0]) == ["created"]
    assert hub.nudges.place
    assert hub.nudges.agents == set(ids(results))


def test_no_orders_are_no_agents(hub: HubInMemory):
    assert hub.spawn_all([]) == []
    assert not hub.nudges.place


def test_every_agent_leaves_a_row_in_the_audit(hub: HubInMemory):
    agents = ids(hub.spawn_all([order(actor="ann"), order(actor="bob")]))
    assert hub.rows("SELECT n, actor, action, object FROM audit ORDER BY n") == [
        (1, "ann", "spawn", agents[0]),
        (2, "bob", "spawn", agents[1]),
    ]


def test_the_same_key_and_request_give_the_same_agent(hub: HubInMemory):
    first, again = hub.spawn_all([order(key="k"), order(key="k")])
    (later,) = hub.spawn_all([order(key="k")])
    assert ids([first, again, later]) == [first.agent.id] * 3
    assert [first.created, again.created, later.created] == [True, False, False]
    assert hub.rows("SELECT count(*) FROM agents") == [(1,)]


def test_a_repeated_order_sees_the_agent_as_it_is_now(hub: HubInMemory):
    agent = hub.spawn(order(key="k"))
    hub.kill(agent)
    (again,) = hub.spawn_all([order(key="k")])
    assert again.agent.state is State.KILLED
    assert not hub.nudges.place


def test_another_request_under_a_known_key_is_a_conflict_of_that_order_alone(hub: HubInMemory):
    first = hub.spawn(order(key="k"))
    results = hub.spawn_all(
        [
            order(),
            order(key="k", request_sha256="1" * 64),
            order(key="new"),
            order(key="new", request_sha256="2" * 64),
        ]
    )
    assert [type(result) for result in results] == [Spawned, ConflictError, Spawned, ConflictError]
    assert first in str(results[1])
    assert results[1].code == "idempotency_conflict"
    assert hub.rows("SELECT count(*) FROM agents") == [(3,)]


def test_a_key_belongs_to_its_tenant(hub: HubInMemory):
    ours, theirs = hub.spawn_all([order(key="k"), order(key="k", tenant="other")])
    assert ours.created
    assert theirs.created
    assert ours.agent.id != theirs.agent.id


def test_held_and_delayed_orders_do_not_wait_for_a_spoke(hub: HubInMemory):
    held, delayed = hub.spawn_all([order(hold=True), order(start_ms=hub.now + 1)])
    hub.site()
    assert hub.place() == 0
    assert [held.agent.state, delayed.agent.state] == [State.HELD, State.WAITING]


@pytest.mark.parametrize(
    "text",
    [
        'it\'s "quoted"',
        "Zürich 🌍",
        "a\\b\nc\td",
        "$[0]",
        "%s ? :x",
        "'); DROP TABLE agents;--",
        "\x01",
    ],
)
def test_any_text_comes_back_as_it_went_in(hub: HubInMemory, text: str):
    agent = hub.spawn(
        order(
            actor=text,
            key=text,
            labels={"a": text},
            selector={"b": text},
            command=(text,),
            env={"X": text},
        )
    )
    found = hub.agent(agent)
    assert found.actor == found.idempotency_key == found.labels["a"] == found.selector["b"] == text
    assert found.spec.command == (text,)
    assert hub.spawn_all([order(key=text)])[0].agent.id == agent


# --- place -------------------------------------------------------------------------------------------


def test_placing_writes_placement_command_agent_and_event_together(hub: HubInMemory):
    zurich, agent = hub.site(), hub.spawn()
    assert hub.place() == 1
    assert hub.nudges.spokes == {"zurich"}
    found, (placed,) = hub.agent(agent), hub.placements(agent)
    assert (found.state, found.gen, found.spoke, found.kill_gen) == (State.PLACED, 1, "zurich", 0)
    assert (placed.gen, placed.spoke, placed.accepted_ms, placed.gone_ms) == (
        1,
        "zurich",
        None,
        None,
    )
    (command,) = zurich.commands()
    assert isinstance(command.item, Spawn)
    assert (command.item.agent, command.item.gen, command.item.spec) == (agent, 1, found.spec)
    assert (placed.cmd, placed.cmd_sha256) == (command.item.id, command.sha256)
    assert hub.kinds(agent) == ["created", "placed"]


def test_credit_is_never_exceeded_and_comes_back_with_the_outcome(hub: HubInMemory):
    zurich = hub.site(slots=1, prefetch=2)
    hub.spawn_all([order()] * 5)
    assert [hub.place(), hub.place()] == [3, 0]
    commands = zurich.commands()
    zurich.tell("queued", commands[0])
    assert hub.place() == 0
    zurich.tell("succeeded", commands[0])
    assert [hub.place(), hub.place()] == [1, 0]


def test_the_load_is_spread_by_slots(hub: HubInMemory):
    hub.site("big", slots=3, prefetch=0)
    hub.site("small", slots=1, prefetch=0)
    agents = ids(hub.spawn_all([order()] * 4))
    hub.place()
    assert sorted(str(hub.agent(agent).spoke) for agent in agents) == [
        "big",
        "big",
        "big",
        "small",
    ]


def test_higher_priority_goes_first_then_who_came_first(hub: HubInMemory):
    zurich = hub.site(slots=1, prefetch=3)
    low, first, high = ids(
        hub.spawn_all([order(priority=1), order(priority=5), order(priority=9)])
    )
    hub.now += 1
    second = hub.spawn(order(priority=5))
    hub.place()
    assert [command.item.agent for command in zurich.commands()] == [high, first, second, low]


def test_who_waited_long_overtakes_but_never_the_critical(hub: HubInMemory):
    old = hub.spawn(order(priority=5))
    hub.now += 30 * MINUTE
    zurich = hub.site(slots=1, prefetch=2)
    young, critical = ids(hub.spawn_all([order(priority=7), order(priority=10)]))
    hub.place()
    assert [command.item.agent for command in zurich.commands()] == [critical, old, young]


def test_ageing_decides_who_gets_the_last_credit(hub: HubInMemory):
    old = hub.spawn(order(priority=5))
    hub.now += 30 * MINUTE
    hub.site(slots=1, prefetch=0)
    young = hub.spawn(order(priority=7))
    assert hub.place() == 1
    assert hub.agent(old).state is State.PLACED
    assert hub.agent(young).state is State.PENDING


def test_what_fits_nowhere_holds_up_nobody(hub: HubInMemory):
    hub.site(slots=1, prefetch=0)
    stuck = ids(hub.spawn_all([order(selector={"gpu": "yes"}, priority=9)] * 5))
    agent = hub.spawn(order(priority=1))
    assert hub.place() == 1
    assert hub.agent(agent).state is State.PLACED
    assert hub.explain(stuck[0]) == "zurich: lacks the label gpu=yes"


def test_agents_that_a_policy_refused_hold_up_nobody_with_the_same_needs(hub: HubInMemory):
    zurich = hub.site(slots=1, prefetch=1)
    refused = ids(hub.spawn_all([order(priority=9)] * 3))
    hub.place()
    for command in zurich.commands():
        zurich.tell("refused", command, reason="policy: not these")
    hub.place()
    for command in zurich.commands():
        zurich.tell("refused", command, reason="policy: not these")
    agents = ids(hub.spawn_all([order(priority=1)] * 2))
    assert hub.place() == 2
    assert {hub.agent(agent).state for agent in agents} == {State.PLACED}
    assert {hub.agent(agent).state for agent in refused} == {State.PENDING}
    assert hub.explain(refused[0]) == "zurich: refused it (policy: not these)"


def test_an_agent_refused_at_one_spoke_goes_to_another(hub: HubInMemory):
    zurich = hub.site("zurich", slots=100)
    geneva = hub.site("geneva", slots=1)
    agent = hub.spawn()
    hub.place()
    (command,) = zurich.commands() or geneva.commands()
    spoke = hub.agent(agent).spoke
    site = zurich if spoke == "zurich" else geneva
    site.tell("refused", command, reason="policy: not here")
    hub.place()
    assert {spoke, hub.agent(agent).spoke} == {"zurich", "geneva"}
    assert hub.agent(agent).gen == 2


@pytest.mark.parametrize("trouble", ["silent", "suspended", "paused", "skewed", "never greeted"])
def test_a_spoke_out_of_service_gets_nothing(hub: HubInMemory, trouble: str):
    zurich = hub.site(says_hello=trouble != "never greeted")
    if trouble == "silent":
        hub.now += 30_000
    elif trouble == "suspended":
        hub.do(lambda c: c.exec_driver_sql("UPDATE spokes SET connection = 'suspended'"))
    elif trouble == "paused":
        hub.do(lambda c: c.exec_driver_sql("UPDATE spokes SET paused = 1"))
    elif trouble == "skewed":
        zurich.beat(iat=hub.now - 31_000)
    hub.spawn()
    assert hub.place() == 0


def test_a_clock_that_is_off_is_known_from_the_hello_on(hub: HubInMemory):
    zurich = hub.site()
    zurich.hello(iat=hub.now + 31_000)
    agent = hub.spawn()
    assert hub.place() == 0
    assert "spoke_clock" in hub.explain(agent)


def test_only_placing_raises_the_generation_and_closes_the_one_before(hub: HubInMemory):
    zurich, agent = hub.site(), hub.spawn()
    for gen in (1, 2, 3):
        hub.place()
        assert (hub.agent(agent).gen, hub.agent(agent).kill_gen) == (gen, gen - 1)
        (command,) = zurich.commands()
        assert command.item.gen == gen
        zurich.tell("refused", command, reason="queue_full")
        zurich.beat()
    assert [placed.gen for placed in hub.placements(agent)] == [1, 2, 3]


def test_a_killed_agent_is_never_placed(hub: HubInMemory):
    agent = hub.spawn()
    hub.kill(agent)
    hub.site()
    assert hub.place() == 0
    assert hub.outbox() == []


def test_one_transaction_places_a_bounded_number_and_asks_for_the_next(
    hub: HubInMemory, monkeypatch
):
    monkeypatch.setattr("hub.control.place.MAX_PLACED", 3)
    hub.site(slots=10)
    hub.spawn_all([order()] * 5)
    assert hub.place() == 3
    assert hub.nudges.place
    assert hub.place() == 2
    assert not hub.nudges.place


# --- dispatch ----------------------------------------------------------------------------------------


def test_kills_go_in_an_envelope_of_their_own(hub: HubInMemory):
    zurich = hub.site()
    killed, _ = ids(hub.spawn_all([order(), order()]))
    hub.place()
    zurich.commands()
    hub.kill(killed)
    hub.spawn()
    hub.place()
    envelopes = zurich.envelopes()
    assert [[type(c.item) for c in items] for items in envelopes] == [[Kill], [Spawn]]


def test_items_are_cut_into_envelopes_by_size_and_count(hub: HubInMemory):
    zurich = hub.site(slots=600, prefetch=0)
    hub.spawn_all([order()] * 300)
    hub.place()
    assert [len(items) for items in zurich.envelopes()] == [MAX_ITEMS]
    assert [len(items) for items in zurich.envelopes()] == [300 - MAX_ITEMS]
    hub.spawn_all([order(input="x" * 30_000)] * 7)
    hub.place()
    assert sum(len(items) for items in zurich.envelopes()) == 7


def test_a_row_is_sent_again_with_growing_waits_until_it_is_accepted(hub: HubInMemory):
    zurich, _ = hub.site(), hub.spawn()
    hub.place()
    start, sent = hub.now, []
    for _ in range(300):
        zurich.beat()
        found = zurich.commands()
        sent += [(hub.now - start) // 1000] * len(found)
        hub.now += 1_000
    waits = [later - earlier for earlier, later in pairwise(sent)]
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    zurich.tell("queued", found[0] if found else _command(hub, zurich))
    hub.now += 600_000
    zurich.beat()
    assert zurich.commands() == []


def _command(hub: HubInMemory, zurich: Any) -> Any:
    hub.do(outbox.reopen, "zurich", hub.now, accepted_too=False)
    return zurich.commands()[0]


def test_an_absent_spoke_gets_nothing_until_its_hello(hub: HubInMemory):
    zurich, _ = hub.site(), hub.spawn()
    hub.place()
    hub.now += 30_000
    assert zurich.commands() == []
    zurich.hello()
    assert len(zurich.commands()) == 1


def test_a_hello_has_what_is_open_sent_at_once(hub: HubInMemory):
    zurich, _ = hub.site(), hub.spawn()
    hub.place()
    assert len(zurich.commands()) == 1
    assert zurich.commands() == []
    zurich.hello()
    assert len(zurich.commands()) == 1


def test_what_was_sent_is_kept_as_proof(hub: HubInMemory):
    from hub.control.dispatch import dispatch

    hub.site()
    hub.spawn()
    hub.place()
    sealed = hub.do(dispatch, "zurich", hub.seal, hub.now, 30_000)
    ((cmd,),) = hub.rows("SELECT id FROM outbox")
    assert hub.rows("SELECT sha256, spoke, items FROM sent") == [
        (sha256(sealed.envelopes[0]), "zurich", f'["{cmd}"]')
    ]


def test_with_nothing_to_send_nothing_is_written(hub: HubInMemory):
    zurich = hub.site()
    assert zurich.commands() == []
    assert hub.rows("SELECT count(*) FROM sent") == [(0,)]


# --- ripen -------------------------------------------------------------------------------------------


def test_an_agent_becomes_pending_at_its_start_time(hub: HubInMemory):
    agent = hub.spawn(order(start_ms=hub.now + 1_000))
    hub.now += 999
    assert hub.ripen() == 0
    hub.now += 1
    assert hub.ripen() == 1
    assert hub.ripen() == 0
    assert hub.agent(agent).state is State.PENDING
    assert hub.kinds(agent) == ["created", "pending"]


@pytest.mark.parametrize(
    "changes", [{}, {"hold": True}, {"start_ms": 2**50}], ids=["pending", "held", "waiting"]
)
def test_a_deadline_that_passes_before_a_placement_expires_the_agent(
    hub: HubInMemory, changes: dict[str, Any]
):
    agent = hub.spawn(order(deadline_ms=hub.now + 10, **changes))
    hub.now += 10
    assert hub.ripen() == 1
    found = hub.agent(agent)
    assert (found.state, found.ended_ms) == (State.EXPIRED, hub.now)
    hub.site()
    assert hub.place() == 0


def test_who_is_due_and_overdue_at_once_expires(hub: HubInMemory):
    agent = hub.spawn(order(start_ms=hub.now + 5, deadline_ms=hub.now + 10))
    hub.now += 20
    assert hub.ripen() == 1
    assert hub.agent(agent).state is State.EXPIRED


def test_a_deadline_of_a_placed_agent_is_the_spokes_affair(hub: HubInMemory):
    hub.site()
    agent = hub.spawn(order(deadline_ms=hub.now + 10))
    hub.place()
    hub.now += 20
    assert hub.ripen() == 0
    assert hub.agent(agent).state is State.PLACED


def test_the_audit_holds_through_all_of_it(hub: HubInMemory):
    zurich = hub.site()
    for agent in ids(hub.spawn_all([order()] * 3)):
        hub.place()
        hub.kill(agent)
        zurich.commands()
    assert hub.do(audit.first_break, "hub") is None
