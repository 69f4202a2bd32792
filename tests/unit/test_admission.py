"""Admission: what may enter, as what, and what is refused with which sentence."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.core.admission import MAX_SPEC_BYTES, Order, admit, priority_name
from hub.schemas import NAME_OF_PRIORITY, PRIORITY_NAMES, AgentType, SpawnRequest
from shared.errors import BadInputError
from shared.messages import AgentSpec, Limits, Network, SandboxKind, Stderr

NOW = 1_800_000_000_000

KIND = AgentType(
    name="lint",
    command=["/usr/bin/lint", "--all"],
    env={"A": "type", "B": "type"},
    selector={"region": "ch"},
    priority="low",
    max_retries=7,
    timeout_s=60,
    grace_s=2,
    sandbox=SandboxKind.PROCESS,
    network=Network.HOST,
    mounts=["source"],
    stderr=Stderr.SEPARATE,
    handles_sigterm=True,
)


def parsed(**fields: Any) -> SpawnRequest:
    return msgspec.json.decode(msgspec.json.encode(fields), type=SpawnRequest)


def order(*types: AgentType, **fields: Any) -> Order:
    known = {kind.name: kind for kind in types}
    return admit(
        parsed(**fields), known, tenant="default", actor="test", key=None, trace="", now_ms=NOW
    )


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"command": ["a"], "surprise": 1}, "unknown field `surprise`"),
        ({"command": "a"}, "Expected `array | null`"),
        ({"command": []}, "length >= 1"),
        ({"command": ["a\0b"]}, "matching regex"),
        ({"command": ["a"], "priority": 0}, "`int` >= 1"),
        ({"command": ["a"], "priority": 11}, "`int` <= 10"),
        ({"command": ["a"], "priority": "5"}, "matching regex"),
        ({"command": ["a"], "priority": "highest"}, "matching regex"),
        ({"command": ["a"], "priority": 5.5}, "Expected"),
        ({"command": ["a"], "max_retries": -1}, "`int` >= 0"),
        ({"command": ["a"], "timeout_s": 0}, "> 0"),
        ({"command": ["a"], "delay_s": -1}, ">= 0"),
        ({"command": ["a"], "hold": "true"}, "Expected `bool`"),
        ({"command": ["a"], "start_at": "2026-11-22T09:00:00"}, "timezone"),
        ({"command": ["a"], "spoke": "Zürich"}, "matching regex"),
        ({"command": ["a"], "spoke": "zurich\n"}, "matching regex"),
        ({"command": ["a"], "env": {"1A": "x"}}, "matching regex"),
        ({"command": ["a"], "env": {"A": "\0"}}, "matching regex"),
        ({"command": ["a"], "labels": {"": "x"}}, "matching regex"),
        ({"command": ["a"], "labels": {f"k{n}": "" for n in range(33)}}, "length <= 32"),
        ({"command": ["a"], "resources": {"cpu": 0}}, ">= 0.01"),
        ({"command": ["a"], "resources": {"memory_bytes": 1}}, ">= 4194304"),
        ({"command": ["a"], "input": "x" * 32_769}, "length <= 32768"),
        ({"command": ["a"], "sandbox": "docker"}, "Invalid enum value"),
        ({"command": ["a"], "simulation": {"exit_code": 256}}, "<= 255"),
        ({"command": ["a"], "after": ["not-an-id"]}, "matching regex"),
    ],
)
def test_a_malformed_request_is_refused_where_it_is_wrong(body: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        parsed(**body)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({}, "bad_input", "give a `type`"),
        ({"type": "lint", "command": ["a"]}, "bad_input", "not both"),
        ({"type": "nobody"}, "unknown_type", "there are: lint"),
        ({"command": ["a"], "simulation": {}}, "bad_input", "sandbox: simulated"),
        ({"command": ["a"], "after": ["01a20287-f0d6-7000-9bd9-1814fe3c805c"]}, "not_supported_yet", "after"),
        ({"command": ["a"], "on_lost": "rerun"}, "not_supported_yet", "on_lost"),
        ({"command": ["a"], "on_partition": "stop"}, "not_supported_yet", "on_partition"),
        ({"command": ["a"], "delay_s": 1, "start_at": iso(NOW)}, "bad_input", "not both"),
        ({"command": ["a"], "deadline": iso(NOW - 1)}, "bad_input", "before the start"),
        ({"command": ["a"], "delay_s": 60, "deadline": iso(NOW + 59_000)}, "bad_input", "before the start"),
        ({"command": ["x" * 16_000] * 4}, "bad_input", "bytes together"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_with_its_reason(
    body: dict[str, Any], code: str, said: str
) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        order(KIND, **body)
    assert caught.value.code == code


def test_what_the_request_leaves_out_comes_from_the_type() -> None:
    spec = order(KIND, type="lint", args=["src"]).spec

    assert spec.command == ("/usr/bin/lint", "--all", "src")
    assert (spec.type, spec.priority, spec.max_retries) == ("lint", PRIORITY_NAMES["low"], 7)
    assert (spec.timeout_ms, spec.grace_ms) == (60_000, 2_000)
    assert (spec.sandbox, spec.network, spec.mounts) == (
        SandboxKind.PROCESS,
        Network.HOST,
        ("source",),
    )
    assert spec.stderr is Stderr.SEPARATE
    assert spec.handles_sigterm


def test_the_request_wins_over_the_type() -> None:
    made = order(
        KIND, type="lint", env={"B": "mine"}, selector={"gpu": "1"}, priority=9, max_retries=0, timeout_s=1,
        grace_s=0, sandbox="bubblewrap", network="none", mounts=["source", "data"],
    )  # fmt: skip

    assert made.spec.env == {"A": "type", "B": "mine"}
    assert made.selector == {"region": "ch", "gpu": "1"}
    assert (made.spec.priority, made.spec.max_retries, made.spec.grace_ms) == (9, 0, 0)
    assert (made.spec.sandbox, made.spec.network) == (SandboxKind.BUBBLEWRAP, Network.NONE)
    assert made.spec.mounts == ("source", "data")


def test_a_bare_command_gets_the_defaults() -> None:
    spec = order(command=["/bin/true"]).spec

    assert (spec.priority, spec.max_retries, spec.grace_ms, spec.timeout_ms) == (
        5,
        3,
        10_000,
        None,
    )
    assert (spec.sandbox, spec.network, spec.limits) == (
        SandboxKind.BUBBLEWRAP,
        Network.NONE,
        Limits(),
    )


def test_a_delay_becomes_a_start_time_and_a_start_in_the_past_means_now() -> None:
    assert order(command=["a"], delay_s=1.5).start_ms == NOW + 1_500
    assert order(command=["a"], delay_s=0).start_ms is None
    assert order(command=["a"], start_at=iso(NOW - 1_000)).start_ms is None
    assert order(command=["a"], start_at=iso(NOW + 1_000)).start_ms == NOW + 1_000


def test_type_and_request_together_never_exceed_what_a_spoke_takes() -> None:
    full = msgspec.structs.replace(KIND, env={f"T{n}": "" for n in range(128)})

    with pytest.raises(BadInputError, match="129 names"):
        order(full, type="lint", env={"MORE": ""})

    many = msgspec.structs.replace(KIND, mounts=[f"m{n}" for n in range(16)])
    with pytest.raises(BadInputError, match="17, at most 16"):
        order(many, type="lint", mounts=["another"])


def test_the_request_hash_does_not_depend_on_the_order_of_names() -> None:
    first = order(command=["a"], env={"A": "1", "B": "2"}, labels={"x": "1", "y": "2"})
    same = order(labels={"y": "2", "x": "1"}, env={"B": "2", "A": "1"}, command=["a"])
    other = order(command=["a"], env={"A": "1", "B": "3"}, labels={"x": "1", "y": "2"})

    assert first.request_sha256 == same.request_sha256
    assert first.request_sha256 != other.request_sha256


def test_a_simulated_agent_needs_no_command() -> None:
    spec = order(
        sandbox="simulated", simulation={"duration_s": 0.25, "crash_rate": 0.5, "exit_code": 3}
    ).spec

    assert spec.simulation is not None
    assert (spec.simulation.duration_ms, spec.simulation.crash_per_mille) == (250, 500)
    assert spec.simulation.exit_code == 3


def test_every_priority_has_a_name_and_every_name_leads_back_to_itself() -> None:
    assert sorted(NAME_OF_PRIORITY) == list(range(1, 11))
    for level in NAME_OF_PRIORITY:
        assert PRIORITY_NAMES[priority_name(level)] <= level


@given(
    cpu=st.floats(0.01, 1024, allow_nan=False),
    timeout=st.floats(0.0001, 31_536_000, allow_nan=False),
    grace=st.floats(0, 3_600, allow_nan=False),
    level=st.integers(1, 10),
)
def test_whatever_is_admitted_can_be_read_by_a_spoke(
    cpu: float, timeout: float, grace: float, level: int
) -> None:
    made = order(
        command=["a"], resources={"cpu": cpu}, timeout_s=timeout, grace_s=grace, priority=level
    )
    encoded = msgspec.json.encode(made.spec)

    assert msgspec.json.decode(encoded, type=AgentSpec) == made.spec
    assert len(encoded) <= MAX_SPEC_BYTES
