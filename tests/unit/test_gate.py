"""The site owner's veto, one row per rule."""

from typing import Any

import pytest

from shared.envelope import Refusal
from shared.messages import Limits, Network, OnLost, OnPartition, SandboxKind
from spoke.core.gate import judge
from spoke.core.policy import Policy
from tests.helpers.hub_peer import agent_spec

POLICY = Policy(
    kinds=(SandboxKind.BUBBLEWRAP, SandboxKind.SIMULATED),
    mounts=("data",),
    host_network=False,
    degraded=True,
    root=True,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"sandbox": SandboxKind.PROCESS},
            "sandbox kind process is not offered here, only bubblewrap, simulated",
        ),
        ({"mounts": ("data", "secrets")}, "no mount secrets here, only data"),
        ({"network": Network.HOST}, "the host's network is not allowed here"),
        ({"on_lost": OnLost.RERUN}, "on_lost: rerun is not supported yet"),
        ({"on_partition": OnPartition.STOP}, "on_partition: stop is not supported yet"),
        ({"command": ()}, "there is no command to run"),
        ({"command": ("",)}, "there is no command to run"),
        ({"command": ("sh", "a\0b")}, "a command or an environment variable holds a NUL"),
        ({"env": {"A": "\0"}}, "a command or an environment variable holds a NUL"),
        ({"env": {"A=B": "1"}}, "an environment variable's name is empty or holds '='"),
        ({"limits": Limits(memory_bytes=1)}, "memory_bytes is 1, at least 4194304 are needed"),
        ({"limits": Limits(pids=1)}, "pids is 1, at least 2 are needed"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_gate_says_no_and_why(changes: dict[str, Any], reason: str) -> None:
    assert judge(agent_spec("sh", **changes), POLICY) == (Refusal.POLICY, reason)


def test_the_gate_lets_an_ordinary_agent_pass() -> None:
    assert judge(agent_spec("sh", mounts=("data",)), POLICY) is None


def test_a_simulated_agent_needs_no_command() -> None:
    assert judge(agent_spec(), POLICY) is None
