"""Placement, pure: who fits, who is best, and the sentence for every "no"."""

from typing import Any

import pytest

from hub.core import placement
from hub.core.placement import Candidate, choose, credit, fitting, requirements, why_pending
from shared.messages import Network, SandboxKind
from tests.helpers.builders import offer, spec


def spoke(
    name: str = "zurich", *, offers: dict[str, Any] | None = None, **changes: Any
) -> Candidate:
    values: dict[str, Any] = {
        "id": name, "online": True, "active": True, "paused": False, "cordoned": False, "full": False,
        "skew_ms": 0, "trouble": "", "offer": offer(**{"slots": 4, **(offers or {})}), "credit": 12, "load": 0,
    }  # fmt: skip
    return Candidate(**values | changes)


def wanted(selector: dict[str, str] | None = None, pinned: str | None = None, **changes: Any):
    return requirements(spec(**changes), selector or {}, pinned)


NO = [
    ({"offer": None}, {}, "not connected"),
    ({"online": False}, {}, "not connected"),
    ({"active": False}, {}, "suspended"),
    ({"cordoned": True}, {}, "cordoned"),
    ({"paused": True}, {}, "its queue is paused"),
    ({"trouble": "Valkey: away"}, {}, "its site is in trouble: Valkey: away"),
    ({"skew_ms": 30_001}, {}, "its clock is off by 30001 ms (spoke_clock)"),
    ({"skew_ms": -30_001}, {}, "its clock is off by -30001 ms (spoke_clock)"),
    ({}, {"selector": {"gpu": "a100"}}, "lacks the label gpu=a100"),
    ({}, {"selector": {"gpu": "a100", "zone": "x"}}, "lacks the label gpu=a100, zone=x"),
    ({}, {"sandbox": SandboxKind.BUBBLEWRAP}, "offers no bubblewrap sandbox"),
    ({}, {"mounts": ("data", "models")}, "offers no mount data, models"),
    ({"full": True, "credit": 0}, {}, "its queue is full (queue_full)"),
    ({"credit": 0}, {}, "no credit left"),
]


@pytest.mark.parametrize(("changes", "wish", "reason"), NO, ids=[row[2][:24] for row in NO])
def test_every_no_has_its_sentence(changes: dict[str, Any], wish: dict[str, Any], reason: str):
    it = spoke(**changes)
    assert choose(fitting(wanted(**wish), [it])) is None
    assert why_pending(wanted(**wish), [it]) == f"zurich: {reason}"


def test_a_spoke_that_meets_every_wish_is_chosen():
    it = spoke(
        offers={
            "labels": {"gpu": "a100", "zone": "x"},
            "kinds": tuple(SandboxKind),
            "mounts": ("data", "models"),
        }
    )
    wish = wanted({"gpu": "a100"}, sandbox=SandboxKind.PROCESS, mounts=("models",))
    assert choose(fitting(wish, [it])) is it
    assert why_pending(wish, [it]) == "zurich: has room, next in line"


def test_a_pinned_agent_goes_to_its_spoke_and_to_no_other():
    here, there = spoke("geneva", load=3), spoke("zurich")
    assert choose(fitting(wanted(pinned="geneva"), [here, there])) is here
    assert why_pending(wanted(pinned="geneva"), [there]) == "spoke `geneva` is not known"
    assert why_pending(wanted(), []) == "no spoke is known yet"


def test_a_clock_off_by_exactly_thirty_seconds_is_still_right():
    assert fitting(wanted(), [spoke(skew_ms=30_000)])


def test_the_least_loaded_share_of_slots_wins_then_the_name():
    big, small = spoke("big", offers={"slots": 100}, load=10), spoke("small", load=1)
    assert choose([big, small]) is big
    twins = [spoke("b"), spoke("a")]
    chosen = choose(twins)
    assert chosen is not None
    assert chosen.id == "a"


def test_who_has_no_credit_is_passed_over():
    tired, fresh = spoke("a", credit=0), spoke("b", load=4)
    assert choose([tired, fresh]) is fresh


def test_a_refusal_by_policy_excludes_until_the_policy_changes():
    it = spoke(offers={"policy": "1" * 64})
    refused = {"zurich": ("1" * 64, "policy: no GPUs for you")}
    assert choose([it], refused) is None
    assert why_pending(wanted(), [it], refused) == "zurich: refused it (policy: no GPUs for you)"
    assert choose([it], {"zurich": ("0" * 64, "policy: as it was before")}) is it


def test_every_spoke_in_reach_says_its_own_no():
    fleet = [spoke("a", online=False), spoke("b", cordoned=True), spoke("c", credit=0)]
    assert why_pending(wanted(), fleet) == "a: not connected; b: cordoned; c: no credit left"


@pytest.mark.parametrize(
    ("slots", "prefetch", "cap", "unfinished", "expected"),
    [
        (4, 8, 100, 0, 12),
        (4, 8, 100, 12, 0),
        (4, 8, 100, 30, 0),
        (4, 8, 10, 3, 7),
        (1, 0, 1, 0, 1),
    ],
)
def test_credit_is_slots_and_prefetch_up_to_the_cap_less_what_is_unfinished(
    slots: int, prefetch: int, cap: int, unfinished: int, expected: int
):
    it = offer(slots=slots, prefetch=prefetch, cap=cap)
    assert credit(it, unfinished, full=False) == expected
    assert credit(it, unfinished, full=True) == 0


def test_equal_requirements_have_equal_signatures_whatever_their_order():
    one = requirements(spec(mounts=("a", "b")), {"x": "1", "y": "2"}, None)
    two = requirements(spec(mounts=("b", "a")), {"y": "2", "x": "1"}, None)
    assert one.signature() == two.signature()
    assert placement.parse_signature(one.signature()) == one


@pytest.mark.parametrize(
    "other",
    [
        requirements(spec(), {}, "zurich"),
        requirements(spec(), {"x": "1"}, None),
        requirements(spec(sandbox=SandboxKind.PROCESS), {}, None),
        requirements(spec(network=Network.HOST), {}, None),
        requirements(spec(mounts=("a",)), {}, None),
    ],
)
def test_what_decides_where_an_agent_may_go_is_in_its_signature(other: placement.Requirements):
    assert other.signature() != requirements(spec(), {}, None).signature()


def test_what_does_not_decide_it_is_not():
    assert wanted(priority=1).signature() == wanted(priority=9, command=("other",)).signature()
