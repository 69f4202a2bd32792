"""What people ask for: kill, release, remove, requeue, discard, pause, resume; asking twice changes nothing."""

from collections.abc import Iterator
from typing import Any

import pytest

from hub.control import operate
from shared.errors import ConflictError, NotFoundError
from shared.lifecycle import State
from shared.messages import Pause, Remove, Resume
from tests.helpers.hubs import HubInMemory, Site, hub_in_memory, order


@pytest.fixture
def hub() -> Iterator[HubInMemory]:
    with hub_in_memory() as hub:
        yield hub


def placed(hub: HubInMemory, *told: str) -> tuple[Site, str, Any]:
    """A spoke, an agent there of which this much was told, and its Spawn."""
    site = hub.site()
    agent = hub.spawn()
    hub.place()
    (command,) = site.commands()
    for kind in told:
        site.tell(kind, command)
    return site, agent, command


def everything(hub: HubInMemory) -> list[list[tuple[Any, ...]]]:
    return [
        hub.rows(f"SELECT * FROM {table}")
        for table in ("agents", "placements", "outbox", "events", "audit")
    ]


# --- kill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"hold": True}, {"start_ms": 2**50}], ids=["pending", "held", "waiting"]
)
def test_who_was_never_placed_is_killed_and_confirmed_at_once(
    hub: HubInMemory, changes: dict[str, Any]
):
    agent = hub.spawn(order(**changes))
    found = hub.kill(agent, reason="not needed")
    assert (found.state, found.reason, found.ended_ms) == (State.KILLED, "not needed", hub.now)
    assert (found.kill_requested_ms, found.kill_accepted_ms, found.kill_confirmed_ms) == (
        hub.now,
    ) * 3
    assert hub.kinds(agent) == ["created", "kill_requested", "killed"]
    assert found == hub.agent(agent)


def test_a_spawn_that_never_left_the_hub_is_taken_back(hub: HubInMemory):
    zurich, agent = hub.site(), hub.spawn()
    hub.place()
    found = hub.kill(agent)
    assert (found.state, found.kill_confirmed_ms) == (State.KILLED, hub.now)
    assert hub.placements(agent)[0].gone_ms == hub.now
    assert zurich.commands() == []


def test_a_spawn_that_may_have_left_is_killed_where_it_may_be(hub: HubInMemory):
    site, agent, _ = placed(hub)
    found = hub.kill(agent)
    assert (found.state, found.kill_requested_ms, found.kill_confirmed_ms) == (
        State.PLACED,
        hub.now,
        None,
    )
    assert [command.item.gen for command in site.commands()] == [1]


@pytest.mark.parametrize("told", [(), ("queued",), ("queued", "running"), ("running", "retrying")])
def test_a_kill_asked_for_twice_changes_nothing(hub: HubInMemory, told: tuple[str, ...]):
    _, agent, _ = placed(hub, *told)
    hub.kill(agent)
    before = everything(hub)
    hub.now += 5
    hub.kill(agent, reason="again")
    assert everything(hub) == before


def test_a_kill_asked_for_again_with_a_grace_of_its_own_hurries_the_first(hub: HubInMemory):
    site, agent, _ = placed(hub, "queued", "running")
    asked = hub.kill(agent)
    site.commands()
    hub.now += 5
    again = hub.kill(agent, grace_ms=0)
    assert again.kill_requested_ms == asked.kill_requested_ms
    (command,) = site.commands()
    assert (command.item.gen, command.item.grace_ms) == (1, 0)


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "killed", "expired"])
def test_a_kill_of_what_ended_changes_nothing(hub: HubInMemory, outcome: str):
    _, agent, _ = placed(hub, outcome)
    before = everything(hub)
    assert hub.kill(agent).state is State(outcome)
    assert everything(hub) == before


def test_a_lost_agent_can_be_killed_and_its_spoke_hears_of_it(hub: HubInMemory):
    site, agent, _ = placed(hub, "running")
    hub.do(lambda c: c.exec_driver_sql("UPDATE agents SET state = 'lost'"))
    hub.kill(agent)
    (kill,) = site.commands()
    site.tell("killed", kill, reason="not_here")
    assert hub.agent(agent).state is State.KILLED
    assert hub.agent(agent).kill_confirmed_ms == hub.now


def test_nobody_kills_another_tenants_agent(hub: HubInMemory):
    hub.spawn_all([order(tenant="other", key="k")])
    ((agent,),) = hub.rows("SELECT id FROM agents")
    with pytest.raises(NotFoundError):
        hub.kill(agent)
    assert hub.agent(agent, "other").state is State.PENDING


# --- release -----------------------------------------------------------------------------------------


def test_a_held_agent_that_is_released_waits_for_a_spoke(hub: HubInMemory):
    agent = hub.spawn(order(hold=True))
    released = hub.operate(operate.release, "default", agent)
    assert released.state is State.PENDING
    assert hub.nudges.place


def test_a_held_agent_that_is_released_before_its_time_waits_for_that(hub: HubInMemory):
    agent = hub.spawn(order(hold=True, start_ms=hub.now + 1_000))
    assert hub.operate(operate.release, "default", agent).state is State.WAITING
    hub.now += 1_000
    hub.ripen()
    assert hub.agent(agent).state is State.PENDING


def test_only_a_held_agent_can_be_released(hub: HubInMemory):
    agent = hub.spawn()
    with pytest.raises(ConflictError):
        hub.operate(operate.release, "default", agent)


# --- remove ------------------------------------------------------------------------------------------


def test_who_is_not_placed_is_removed_at_once(hub: HubInMemory):
    agent = hub.spawn()
    removed = hub.operate(operate.remove, "default", agent)
    assert (removed.state, removed.reason) == (State.KILLED, "removed")


def test_a_spawn_that_never_left_is_removed_at_once(hub: HubInMemory):
    hub.site()
    agent = hub.spawn()
    hub.place()
    assert hub.operate(operate.remove, "default", agent).state is State.KILLED
    assert hub.outbox() == []
    assert hub.nudges.place


def test_who_is_queued_at_a_spoke_is_removed_there(hub: HubInMemory):
    site, agent, command = placed(hub, "queued")
    assert hub.operate(operate.remove, "default", agent).state is State.QUEUED
    (remove,) = site.commands()
    assert isinstance(remove.item, Remove)
    site.ask(site.event("kill_accepted", remove), site.event("killed", command, reason="removed"))
    assert (hub.agent(agent).state, hub.agent(agent).reason) == (State.KILLED, "removed")
    assert hub.outbox() == []


def test_a_removal_asked_for_twice_changes_nothing(hub: HubInMemory):
    _, agent, _ = placed(hub, "queued")
    hub.operate(operate.remove, "default", agent)
    before = everything(hub)
    hub.operate(operate.remove, "default", agent)
    assert everything(hub) == before


def test_after_a_refused_removal_it_can_be_asked_for_again(hub: HubInMemory):
    site, agent, command = placed(hub, "queued")
    hub.operate(operate.remove, "default", agent)
    (remove,) = site.commands()
    site.tell("running", command)
    site.tell("refused", remove, reason="running")
    site.tell("retrying", command)
    hub.operate(operate.remove, "default", agent)
    assert sorted(hub.outbox()) == ["remove", "spawn"]


def test_a_removal_of_what_is_being_killed_changes_nothing(hub: HubInMemory):
    _, agent, _ = placed(hub, "queued")
    hub.kill(agent)
    before = everything(hub)
    hub.operate(operate.remove, "default", agent)
    assert everything(hub) == before


def test_who_runs_is_not_removed(hub: HubInMemory):
    _, agent, _ = placed(hub, "running")
    with pytest.raises(ConflictError) as conflict:
        hub.operate(operate.remove, "default", agent)
    assert conflict.value.code == "running"


def test_who_ended_stays_as_it_is(hub: HubInMemory):
    _, agent, _ = placed(hub, "succeeded")
    assert hub.operate(operate.remove, "default", agent).state is State.SUCCEEDED


# --- requeue and discard -----------------------------------------------------------------------------


def test_a_requeued_dead_letter_runs_as_the_next_generation(hub: HubInMemory):
    site, agent, _ = placed(hub, "running", "failed")
    assert hub.agent(agent).dead
    assert hub.operate(operate.requeue, "default", [agent], reason="fixed") == [(agent, "")]
    found = hub.agent(agent)
    assert (found.state, found.dead, found.gen, found.exit, found.ended_ms) == (
        State.PENDING,
        False,
        1,
        None,
        None,
    )
    assert hub.place() == 1
    (command,) = site.commands()
    assert command.item.gen == 2
    assert hub.agent(agent).kill_gen == 1


def test_requeue_answers_for_each_agent(hub: HubInMemory):
    _, dead, _ = placed(hub, "failed")
    alive = hub.spawn()
    results = hub.operate(operate.requeue, "default", [dead, alive, "nobody", dead], reason="")
    assert results == [
        (dead, ""),
        (alive, "not a dead letter: it is pending"),
        ("nobody", "no agent nobody"),
    ]
    assert hub.nudges.place
    assert hub.nudges.agents == {dead}


def test_a_discarded_dead_letter_stays_failed_and_cannot_be_requeued(hub: HubInMemory):
    _, agent, _ = placed(hub, "failed")
    hub.operate(operate.discard, "default", [agent], reason="no use")
    assert (hub.agent(agent).state, hub.agent(agent).dead) == (State.FAILED, False)
    assert hub.operate(operate.requeue, "default", [agent], reason="") == [
        (agent, "not a dead letter: it is failed")
    ]


def test_a_requeued_agent_that_was_being_killed_is_not_any_more(hub: HubInMemory):
    site, agent, command = placed(hub, "running")
    hub.kill(agent)
    site.tell("failed", command)
    assert hub.agent(agent).kill_confirmed_ms == hub.now
    hub.operate(operate.requeue, "default", [agent], reason="")
    found = hub.agent(agent)
    assert (found.kill_requested_ms, found.kill_accepted_ms, found.kill_confirmed_ms) == (
        None,
        None,
        None,
    )
    hub.place()
    site.commands()
    hub.kill(agent)
    (kill,) = site.commands()
    assert kill.item.gen == 2


# --- pause and resume --------------------------------------------------------------------------------


def test_a_paused_queue_gets_the_word_and_no_new_agents(hub: HubInMemory):
    zurich = hub.site()
    hub.operate(operate.pause, "zurich")
    agent = hub.spawn()
    assert hub.place() == 0
    assert hub.explain(agent) == "zurich: its queue is paused"
    (pause,) = zurich.commands()
    assert isinstance(pause.item, Pause)
    assert hub.nudges.spokes == {"zurich"} or not hub.nudges.spokes


def test_only_the_newest_wanted_state_is_sent_and_its_revision_rises(hub: HubInMemory):
    zurich = hub.site()
    hub.operate(operate.pause, "zurich")
    hub.operate(operate.resume, "zurich")
    hub.operate(operate.pause, "zurich")
    hub.operate(operate.resume, "zurich")
    (resume,) = zurich.commands()
    assert isinstance(resume.item, Resume)
    assert resume.item.rev == hub.spoke().rev == 4


def test_pausing_what_is_paused_changes_nothing(hub: HubInMemory):
    hub.site()
    hub.operate(operate.pause, "zurich")
    before = everything(hub)
    hub.operate(operate.pause, "zurich")
    assert everything(hub) == before


def test_a_spoke_that_nobody_knows_cannot_be_paused(hub: HubInMemory):
    with pytest.raises(NotFoundError):
        hub.operate(operate.pause, "nowhere")


def test_whatever_people_do_is_audited_with_their_name(hub: HubInMemory):
    site, agent, command = placed(hub)
    hub.operate(operate.pause, "zurich", actor="ann")
    hub.operate(operate.resume, "zurich", actor="bob")
    hub.kill(agent, actor="cleo")
    site.tell("failed", command)
    hub.operate(operate.requeue, "default", [agent], reason="", actor="dan")
    assert hub.rows("SELECT actor, action FROM audit ORDER BY n") == [
        ("tester", "spawn"),
        ("ann", "pause"),
        ("bob", "resume"),
        ("cleo", "kill"),
        ("spoke:zurich", "outcome"),
        ("spoke:zurich", "kill_confirmed"),
        ("dan", "requeue"),
    ]
