"""Intake: whatever a spoke says, true or false, early, late or twice, becomes what the hub may know, and no more."""

from collections.abc import Iterator
from typing import Any

import pytest

from hub.control import operate
from shared.envelope import Refusal, RefusalError
from shared.lifecycle import ENDED, State
from shared.messages import Exit, ExitKind, Kill, Pause, Spawn, Verdict
from shared.trust import TrustedItem
from tests.helpers.builders import log_chunk
from tests.helpers.hubs import HubInMemory, Site, hub_in_memory, order

OUTCOMES = ["succeeded", "failed", "killed", "expired"]


@pytest.fixture
def hub() -> Iterator[HubInMemory]:
    with hub_in_memory() as hub:
        yield hub


def sent(hub: HubInMemory, site: Site, **changes: Any) -> TrustedItem[Any]:
    """The Spawn of a new agent, as it reached the spoke."""
    agent = hub.spawn(order(spoke=site.name, **changes))
    hub.place()
    return next(item for item in site.commands() if getattr(item.item, "agent", None) == agent)


def state(hub: HubInMemory, command: TrustedItem[Any]) -> State:
    return hub.agent(command.item.agent).state


# --- hello -------------------------------------------------------------------------------------------


def test_the_first_hello_begins_the_first_incarnation(hub: HubInMemory):
    zurich = hub.site(says_hello=False)
    assert zurich.hello().verdict is Verdict.NEW_INCARNATION
    assert (zurich.incarnation, hub.spoke().incarnation, hub.spoke().evt_ack) == (1, 1, 0)


def test_a_journal_that_is_as_far_as_the_hub_goes_on(hub: HubInMemory):
    zurich = hub.site()
    zurich.tell("queued", sent(hub, zurich))
    zurich.seq += 5  # not reported yet
    assert zurich.hello().verdict is Verdict.GO_ON
    assert (hub.spoke().incarnation, hub.spoke().evt_ack) == (1, 1)


@pytest.mark.parametrize("loss", ["journal", "newest events", "an incarnation of its own"])
def test_a_journal_that_is_missing_or_older_begins_a_new_incarnation(hub: HubInMemory, loss: str):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("queued", command)
    zurich.tell("running", command)
    if loss == "journal":
        zurich.incarnation, zurich.seq = 0, 0
    elif loss == "newest events":
        zurich.seq = 1
    else:
        zurich.incarnation = 7
    assert zurich.hello().verdict is Verdict.NEW_INCARNATION
    assert hub.spoke().incarnation == (8 if loss == "an incarnation of its own" else 2)
    assert hub.spoke().evt_ack == 0


def test_a_new_incarnation_is_sent_again_what_was_accepted_with_the_same_bytes(hub: HubInMemory):
    zurich = hub.site()
    queued, killed, done = sent(hub, zurich), sent(hub, zurich), sent(hub, zurich)
    for command in (queued, killed, done):
        zurich.tell("queued", command)
    zurich.tell("succeeded", done)
    hub.kill(killed.item.agent)
    (kill,) = zurich.commands()
    zurich.tell("kill_accepted", kill)
    zurich.incarnation = 0
    zurich.hello()
    again = {item.item.id: item.sha256 for item in zurich.commands()}
    assert again == {item.item.id: item.sha256 for item in (queued, killed, kill)}


def test_an_accepted_command_is_not_sent_again_to_a_journal_that_goes_on(hub: HubInMemory):
    zurich = hub.site()
    zurich.tell("queued", sent(hub, zurich))
    zurich.hello()
    assert zurich.commands() == []


def test_a_new_journal_hears_again_that_its_queue_is_paused(hub: HubInMemory):
    zurich = hub.site()
    hub.operate(operate.pause, "zurich")
    (pause,) = zurich.commands()
    zurich.tell("applied", pause)
    assert hub.outbox() == []
    zurich.incarnation = 0
    zurich.hello()
    (again,) = zurich.commands()
    assert isinstance(again.item, Pause)
    assert again.item.rev > pause.item.rev
    assert hub.spoke().rev == again.item.rev


def test_a_spoke_that_was_never_told_anything_is_told_nothing(hub: HubInMemory):
    zurich = hub.site()
    zurich.incarnation = 0
    zurich.hello()
    assert zurich.commands() == []


def test_a_version_that_is_not_spoken_here_is_refused_and_changes_nothing(hub: HubInMemory):
    zurich = hub.site()
    from tests.helpers.builders import hello

    with pytest.raises(RefusalError) as refused:
        zurich.ask(hello(versions=(2, 3), incarnation=9))
    assert refused.value.refusal is Refusal.MALFORMED
    assert hub.spoke().incarnation == 1


def test_a_suspended_spoke_is_not_heard(hub: HubInMemory):
    zurich = hub.site()
    hub.do(lambda c: c.exec_driver_sql("UPDATE spokes SET connection = 'suspended'"))
    with pytest.raises(RefusalError):
        zurich.beat()


def test_what_is_no_request_is_refused(hub: HubInMemory):
    zurich = hub.site()
    with pytest.raises(RefusalError):
        zurich.ask(log_chunk())


# --- heartbeats --------------------------------------------------------------------------------------


def test_heartbeats_are_ordered_by_their_counter(hub: HubInMemory):
    zurich = hub.site()
    zurich.beat(counter=5, rev=5)
    hub.now += 1_000
    zurich.beat(counter=5, rev=4)
    zurich.beat(counter=4, rev=3)
    assert hub.spoke().heartbeat.rev == 5
    assert hub.spoke().seen_ms == hub.now - 1_000
    zurich.beat(counter=6, rev=6)
    assert hub.spoke().heartbeat.rev == 6


def test_an_old_heartbeat_stays_old_after_a_hello(hub: HubInMemory):
    zurich = hub.site()
    zurich.beat(counter=5)
    zurich.hello()
    hub.now += 40_000
    zurich.beat(counter=5)
    assert hub.spoke().seen_ms == hub.now - 40_000


def test_a_heartbeat_of_another_incarnation_is_refused(hub: HubInMemory):
    zurich = hub.site()
    zurich.incarnation = 2
    with pytest.raises(RefusalError) as refused:
        zurich.beat()
    assert refused.value.refusal is Refusal.WRONG_INCARNATION


def test_a_heartbeat_shows_the_skew_of_the_spokes_clock(hub: HubInMemory):
    zurich = hub.site()
    zurich.beat(iat=hub.now + 2_500)
    assert hub.spoke().skew_ms == 2_500


# --- events ------------------------------------------------------------------------------------------


def test_a_life_from_acceptance_to_success(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    agent = command.item.agent
    assert zurich.tell("queued", command) == 1
    assert (state(hub, command), hub.placements(agent)[0].accepted_ms) == (State.QUEUED, hub.now)
    hub.now += 5
    assert zurich.tell("running", command) == 2
    assert (state(hub, command), hub.agent(agent).started_ms) == (State.RUNNING, hub.now)
    hub.now += 5
    ended = Exit(kind=ExitKind.EXITED, code=0, started_ms=1, ended_ms=2)
    assert zurich.tell("succeeded", command, exit=ended) == 3
    found = hub.agent(agent)
    assert (found.state, found.exit, found.ended_ms, found.dead) == (
        State.SUCCEEDED,
        ended,
        hub.now,
        False,
    )
    assert hub.placements(agent)[0].gone_ms == hub.now
    assert hub.outbox() == []
    assert hub.kinds(agent) == ["created", "placed", "queued", "running", "succeeded"]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize(
    "before", [(), ("queued",), ("queued", "running"), ("queued", "running", "retrying")]
)
def test_an_outcome_ends_it_whatever_was_heard_before(
    hub: HubInMemory, outcome: str, before: tuple[str, ...]
):
    zurich = hub.site()
    command = sent(hub, zurich)
    for kind in before:
        zurich.tell(kind, command)
    zurich.tell(outcome, command, reason="so it was")
    found = hub.agent(command.item.agent)
    assert (found.state, found.reason, found.dead) == (
        State(outcome),
        "so it was",
        outcome == "failed",
    )
    assert hub.placements(found.id)[0].gone_ms is not None
    assert hub.outbox() == []


@pytest.mark.parametrize("kind", ["running", "retrying"])
def test_a_spawn_that_came_again_may_be_answered_with_how_far_it_got(hub: HubInMemory, kind: str):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell(kind, command)
    assert hub.placements(command.item.agent)[0].accepted_ms == hub.now
    for _ in range(20):
        hub.now += 10_000
        zurich.beat()
        assert zurich.commands() == []


def test_a_retry_shows_when_it_is_due_and_the_next_start_takes_that_away(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("running", command)
    zurich.tell("retrying", command, retry_at=hub.now + 500)
    assert (state(hub, command), hub.agent(command.item.agent).retry_ms) == (
        State.RETRYING,
        hub.now + 500,
    )
    zurich.tell("running", command, attempt=2)
    found = hub.agent(command.item.agent)
    assert (found.state, found.attempt, found.retry_ms) == (State.RUNNING, 2, None)


def test_events_that_come_twice_count_once(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    batch = [zurich.event("queued", command), zurich.event("running", command)]
    assert [zurich.ask(*batch).header.evt_ack for _ in range(3)] == [2, 2, 2]
    assert hub.kinds(command.item.agent) == ["created", "placed", "queued", "running"]


def test_a_batch_that_overlaps_counts_from_where_it_is_new(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    batch = [zurich.event(kind, command) for kind in ("queued", "running", "succeeded")]
    zurich.ask(*batch[:2])
    assert zurich.ask(*batch[1:]).header.evt_ack == 3
    assert hub.kinds(command.item.agent)[2:] == ["queued", "running", "succeeded"]


def test_after_a_gap_nothing_counts_until_it_is_filled(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    batch = [zurich.event(kind, command) for kind in ("queued", "running", "succeeded")]
    assert zurich.ask(*batch[1:]).header.evt_ack == 0
    assert zurich.ask(batch[0], batch[2]).header.evt_ack == 1
    assert state(hub, command) is State.QUEUED
    assert zurich.ask(*batch).header.evt_ack == 3
    assert state(hub, command) is State.SUCCEEDED


def test_events_out_of_order_count_as_far_as_they_follow(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    batch = [zurich.event(kind, command) for kind in ("queued", "running", "succeeded")]
    assert zurich.ask(batch[1], batch[0], batch[2]).header.evt_ack == 1


def test_the_acknowledgement_never_falls_within_an_incarnation(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("queued", command)
    zurich.tell("running", command)
    zurich.seq = 0
    assert zurich.tell("queued", command) == 2


def test_events_of_another_incarnation_are_refused(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    with pytest.raises(RefusalError):
        zurich.ask(zurich.event("queued", command), inc=2)
    assert state(hub, command) is State.PLACED


def test_an_outcome_of_an_earlier_generation_changes_nothing(hub: HubInMemory):
    zurich = hub.site()
    first = sent(hub, zurich)
    zurich.tell("failed", first)
    hub.operate(operate.requeue, "default", [first.item.agent], reason="")
    zurich.tell("succeeded", first)
    assert state(hub, first) is State.PENDING
    hub.place()
    (second,) = zurich.commands()
    assert second.item.gen == 2
    zurich.tell("killed", first)
    zurich.tell("succeeded", first)
    assert state(hub, first) is State.PLACED
    assert [placed.gone_ms is None for placed in hub.placements(first.item.agent)] == [False, True]


def test_after_the_outcome_nothing_changes_any_more(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("succeeded", command)
    for kind in ("queued", "running", "retrying", "failed", "killed", "expired", "kill_accepted"):
        zurich.tell(kind, command)
    assert state(hub, command) is State.SUCCEEDED
    assert hub.kinds(command.item.agent)[-1] == "succeeded"


def test_events_about_agents_that_nobody_knows_are_acknowledged(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    stranger = "01a1ee56-5e00-7000-8000-00000000dead"
    for n, kind in enumerate(
        ["queued", "running", "succeeded", "killed", "kill_accepted", "refused"], 1
    ):
        assert zurich.tell(kind, command, agent=stranger, cmd=stranger, reason="policy") == n
    assert state(hub, command) is State.PLACED


@pytest.mark.parametrize(
    "kind", ["queued", "running", "retrying", *OUTCOMES, "kill_accepted", "refused"]
)
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_spoke_is_not_believed_about_what_was_placed_elsewhere(
    hub: HubInMemory, kind: str, is_killed: bool
):
    zurich, liar = hub.site(), hub.site("liar")
    command = sent(hub, zurich)
    agent = command.item.agent
    if is_killed:
        hub.kill(agent)
    before, rows = hub.agent(agent), hub.rows("SELECT * FROM outbox")
    for reason in ("", "queue_full", "policy: mine"):
        liar.tell(kind, command, reason=reason)
    assert hub.agent(agent) == before
    assert hub.placements(agent)[0].accepted_ms is None
    assert hub.placements(agent)[0].gone_ms is None
    assert hub.rows("SELECT * FROM outbox") == rows


# --- refusals ----------------------------------------------------------------------------------------


def test_queue_full_sends_the_agent_back_and_takes_the_credit_until_a_heartbeat_shows_room(
    hub: HubInMemory,
):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("refused", command, reason="queue_full")
    found = hub.agent(command.item.agent)
    assert (found.state, found.spoke, found.gen) == (State.PENDING, None, 1)
    assert hub.outbox() == []
    assert hub.placements(found.id)[0].gone_ms is not None
    assert hub.place() == 0
    assert hub.explain(found.id) == "zurich: its queue is full (queue_full)"
    zurich.hello()
    zurich.beat(full=True)
    assert hub.place() == 0
    zurich.beat(full=False)
    assert hub.place() == 1
    assert hub.agent(found.id).gen == 2


def test_a_refusal_by_policy_holds_until_the_policy_changes(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("refused", command, reason="policy: no such mount")
    assert state(hub, command) is State.PENDING
    zurich.beat()
    zurich.hello()
    assert hub.place() == 0
    assert hub.explain(command.item.agent) == "zurich: refused it (policy: no such mount)"
    zurich.hello(policy="2" * 64)
    assert hub.place() == 1


def test_a_second_refusal_by_policy_replaces_the_first(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    for digest in ("1" * 64, "2" * 64, "3" * 64):
        zurich.tell("refused", command, reason="policy: no")
        assert hub.place() == 0
        zurich.hello(policy=digest)
        assert hub.place() == 1
        (command,) = zurich.commands()
    assert len(hub.rows("SELECT * FROM exclusions")) == 1


def test_an_equivocation_is_an_alarm_and_changes_nothing(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    before = hub.rows("SELECT * FROM agents"), hub.rows("SELECT * FROM outbox")
    zurich.tell("refused", command, reason="equivocation")
    assert (hub.rows("SELECT * FROM agents"), hub.rows("SELECT * FROM outbox")) == before
    assert hub.placements(command.item.agent)[0].gone_ms is None
    assert hub.rows("SELECT result FROM audit WHERE action = 'refused'") == [("equivocation",)]


@pytest.mark.parametrize("reason", ["queue_full", "policy: no", "superseded"])
def test_an_agent_that_is_refused_while_it_is_killed_is_killed(hub: HubInMemory, reason: str):
    zurich = hub.site()
    command = sent(hub, zurich)
    hub.kill(command.item.agent)
    zurich.tell("refused", command, reason=reason)
    found = hub.agent(command.item.agent)
    assert found.state is State.KILLED
    assert found.kill_confirmed_ms == hub.now
    zurich.beat()
    assert hub.place() == 0
    assert hub.outbox() == []


@pytest.mark.parametrize(
    "reason", ["running", "policy: no kills here", "superseded", "queue_full"]
)
def test_only_the_refusal_of_a_spawn_brings_an_agent_back(hub: HubInMemory, reason: str):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("queued", command)
    hub.operate(operate.remove, "default", command.item.agent)
    (remove,) = zurich.commands()
    zurich.tell("running", command)
    zurich.tell("refused", remove, reason=reason)
    assert state(hub, command) is State.RUNNING
    assert hub.placements(command.item.agent)[0].gone_ms is None
    assert hub.outbox() == ["spawn"]


@pytest.mark.parametrize("before", ["queued", "running", "retrying"])
def test_a_new_journal_may_refuse_what_the_old_one_had_accepted(hub: HubInMemory, before: str):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell(before, command)
    zurich.incarnation = 0
    zurich.hello()
    (again,) = zurich.commands()
    zurich.tell("refused", again, reason="queue_full")
    assert state(hub, command) is State.PENDING
    zurich.beat()
    assert hub.place() == 1
    assert hub.agent(command.item.agent).gen == 2


def test_a_newer_generation_that_is_superseded_leaves_the_older_one_open(hub: HubInMemory):
    zurich = hub.site()
    first = sent(hub, zurich)
    agent = first.item.agent
    # As after a restore: the hub has placed the next generation where an older one still lives.
    hub.do(lambda c: c.exec_driver_sql("UPDATE agents SET state = 'pending', spoke = NULL"))
    hub.place()
    (second,) = zurich.commands()
    zurich.tell("refused", second, reason="superseded")
    assert [placed.gone_ms is None for placed in hub.placements(agent)] == [True, False]


# --- wanted states -----------------------------------------------------------------------------------


def test_an_applied_state_closes_its_row_and_a_refused_one_too(hub: HubInMemory):
    zurich = hub.site()
    hub.operate(operate.pause, "zurich")
    (pause,) = zurich.commands()
    zurich.tell("applied", pause)
    assert hub.outbox() == []
    hub.operate(operate.resume, "zurich")
    (resume,) = zurich.commands()
    zurich.tell("refused", resume, reason="superseded")
    assert hub.outbox() == []


# --- kills -------------------------------------------------------------------------------------------


def test_a_kill_is_requested_accepted_and_confirmed(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    agent = command.item.agent
    zurich.tell("running", command)
    hub.kill(agent, grace_ms=5, reason="enough")
    (kill,) = zurich.commands()
    assert isinstance(kill.item, Kill)
    assert (kill.item.gen, kill.item.grace_ms, kill.item.reason) == (1, 5, "enough")
    requested = hub.now
    hub.now += 10
    zurich.tell("kill_accepted", kill)
    assert state(hub, command) is State.RUNNING
    accepted = hub.now
    hub.now += 10
    zurich.tell("killed", command, reason="enough")
    found = hub.agent(agent)
    assert (found.kill_requested_ms, found.kill_accepted_ms, found.kill_confirmed_ms) == (
        requested,
        accepted,
        hub.now,
    )
    assert found.state is State.KILLED
    assert hub.outbox() == []
    assert hub.kinds(agent)[3:] == ["kill_requested", "kill_accepted", "killed", "kill_confirmed"]


def test_a_kill_that_overtook_its_spawn_is_confirmed_by_not_here(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    hub.kill(command.item.agent)
    (kill,) = zurich.commands()
    zurich.ask(
        zurich.event("kill_accepted", kill), zurich.event("killed", kill, reason="not_here")
    )
    found = hub.agent(command.item.agent)
    assert (found.state, found.kill_confirmed_ms) == (State.KILLED, hub.now)
    assert hub.outbox() == []


def test_a_kill_is_confirmed_also_by_another_outcome(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    hub.kill(command.item.agent)
    zurich.tell("succeeded", command)
    found = hub.agent(command.item.agent)
    assert (found.state, found.kill_confirmed_ms) == (State.SUCCEEDED, hub.now)
    assert hub.outbox() == []


def test_a_kill_is_confirmed_when_the_last_of_several_placements_is_gone(hub: HubInMemory):
    zurich, geneva = hub.site("zurich"), hub.site("geneva")
    agent = hub.spawn()
    hub.place()
    here, there = (zurich, geneva) if hub.agent(agent).spoke == "zurich" else (geneva, zurich)
    (first,) = here.commands()
    here.tell("running", first)
    # The hub's own word that it was lost closes nothing.
    hub.do(lambda c: c.exec_driver_sql("UPDATE agents SET state = 'pending', spoke = NULL"))
    hub.do(lambda c: c.exec_driver_sql("UPDATE spokes SET is_full = 1 WHERE id = ?", (here.name,)))
    hub.place()
    (second,) = there.commands()
    there.tell("running", second)
    hub.kill(agent)
    ((kill_here,), (kill_there,)) = here.commands(), there.commands()
    assert (kill_here.item.gen, kill_there.item.gen) == (1, 2)
    there.tell("killed", second)
    assert hub.agent(agent).state is State.KILLED
    assert hub.agent(agent).kill_confirmed_ms is None
    assert sorted(hub.outbox(here.name)) == ["kill", "spawn"]
    hub.now += 7
    here.tell("killed", first)
    assert hub.agent(agent).kill_confirmed_ms == hub.now
    assert hub.outbox(here.name) == []


def test_a_kill_goes_out_again_and_again_until_it_is_accepted(hub: HubInMemory):
    zurich = hub.site()
    command = sent(hub, zurich)
    zurich.tell("running", command)
    hub.kill(command.item.agent)
    kills = 0
    for _ in range(40):
        kills += len(zurich.commands())
        hub.now += 10_000
        zurich.beat()
    assert kills > 5
    assert {type(item.item) for item in zurich.commands()} <= {Kill}


def test_an_agent_that_ended_has_nothing_open_anywhere(hub: HubInMemory):
    zurich = hub.site(slots=20)
    commands = [sent(hub, zurich) for _ in OUTCOMES]
    zurich.ask(*(zurich.event(kind, item) for kind, item in zip(OUTCOMES, commands, strict=True)))
    assert {state(hub, command) for command in commands} <= ENDED
    assert hub.rows("SELECT count(*) FROM placements WHERE gone_ms IS NULL") == [(0,)]
    assert all(isinstance(command.item, Spawn) for command in commands)
    assert hub.outbox() == []


def test_a_replayed_hello_begins_nothing_anew():
    with hub_in_memory() as hub:
        zurich = hub.site("zurich")
        first = zurich.said_at
        zurich.hello()
        known = zurich.incarnation
        zurich.incarnation, zurich.seq = 0, 0  # what its very first hello said
        with pytest.raises(RefusalError, match="replayed"):
            zurich.hello(iat=first)
        zurich.incarnation = known
        assert zurich.hello().verdict == "go_on"
