"""The one table of an agent's life, pair by pair and along random walks."""

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.lifecycle import AT_SPOKE, COUNTS, ENDED, TRANSITIONS, Fact, State, advance
from shared.messages import EventKind

# Every (state, fact) that changes something, written out: the table must say this and nothing else.
PROVEN = ["queued", "running", "retrying", "succeeded", "failed", "killed", "expired"]
BEFORE_PLACEMENT = {"killed": "killed", "cancelled": "cancelled", "expired": "expired"}
EXPECTED = {
    "held": {"released": "waiting", **BEFORE_PLACEMENT},
    "waiting": {"due": "pending", **BEFORE_PLACEMENT},
    "pending": {"placed": "placed", **BEFORE_PLACEMENT},
    "placed": {**{fact: fact for fact in PROVEN}, "returned": "pending", "lost": "lost"},
    "queued": {**{fact: fact for fact in PROVEN}, "returned": "pending", "lost": "lost"},
    "running": {**{fact: fact for fact in PROVEN}, "returned": "pending", "lost": "lost"},
    "retrying": {**{fact: fact for fact in PROVEN}, "returned": "pending", "lost": "lost"},
    "succeeded": {},
    "failed": {"requeued": "pending"},
    "killed": {},
    "cancelled": {},
    "expired": {},
    "lost": {**{fact: fact for fact in PROVEN}, "requeued": "pending"},
}


@pytest.mark.parametrize(
    ("state", "fact"), list(product(State, Fact)), ids=lambda part: part.value
)
def test_every_pair_of_state_and_fact_does_what_the_table_in_this_test_says(
    state: State, fact: Fact
):
    assert advance(state, fact) == EXPECTED[state.value].get(fact.value)


def test_every_state_has_a_row_and_can_be_reached():
    assert set(TRANSITIONS) == set(State)
    reached = {State.HELD, State.WAITING, State.PENDING}
    while new := {s for state in reached for s in TRANSITIONS[state].values()} - reached:
        reached |= new
    assert reached == set(State)


def test_every_fact_has_an_effect_somewhere():
    assert {fact for row in TRANSITIONS.values() for fact in row} == set(Fact)


def test_an_ended_agent_moves_only_by_a_requeue_or_out_of_lost():
    for state in ENDED - {State.LOST}:
        assert set(TRANSITIONS[state]) <= {Fact.REQUEUED}


def test_lost_is_undone_by_any_signed_fact_and_by_nothing_that_the_hub_says_alone():
    assert set(TRANSITIONS[State.LOST]) == {Fact(word) for word in PROVEN} | {Fact.REQUEUED}


def test_the_five_counts_hold_every_state_exactly_once():
    counted = sorted(state for states in COUNTS.values() for state in states)
    assert counted == sorted(State)
    assert list(COUNTS) == ["pending", "active", "delayed", "completed", "failed"]


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        TRANSITIONS[State.HELD] = {}  # type: ignore[index]


def test_what_a_spoke_reports_under_a_facts_name_is_that_fact():
    told = {kind.value for kind in EventKind}
    assert told & {fact.value for fact in Fact} == set(PROVEN)


class Life(RuleBasedStateMachine):
    """One agent, to whom anything happens in any order, as redelivered and overtaking messages do."""

    @initialize(state=st.sampled_from([State.HELD, State.WAITING, State.PENDING]))
    def is_created(self, state: State) -> None:
        self.state = state
        self.was = state
        self.fact: Fact | None = None

    @rule(fact=st.sampled_from(Fact))
    def hears(self, fact: Fact) -> None:
        self.was, self.fact = self.state, fact
        after = advance(self.state, fact)
        self.state = self.state if after is None else after

    @invariant()
    def nothing_leaves_the_end_but_a_requeue_or_proof_that_it_was_not_lost(self) -> None:
        if self.was in ENDED and self.state is not self.was:
            assert self.fact is Fact.REQUEUED or self.was is State.LOST

    @invariant()
    def only_a_spoke_that_was_chosen_can_report(self) -> None:
        if self.state in AT_SPOKE and self.was not in AT_SPOKE | {State.LOST}:
            assert (self.was, self.fact) in {(self.state, self.fact), (State.PENDING, Fact.PLACED)}

    @invariant()
    def a_fact_heard_twice_changes_nothing_the_second_time(self) -> None:
        if self.fact is not None and self.state is not self.was:
            assert advance(self.state, self.fact) in {None, self.state}


Life.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
test_a_life_keeps_its_invariants_whatever_is_heard = Life.TestCase
