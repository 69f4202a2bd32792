"""The site owner's veto: may this run here?

Asked twice with the same answer: when a Spawn arrives, so that the hub can place the agent elsewhere, and when its
attempt is leased, because the policy may have changed while it waited. A no is always `policy` with one sentence
that says what would have to change. What the hub already refuses is refused here all the same: a spoke trusts the
hub's signature, not its judgement.
"""

from collections.abc import Iterator
from typing import Final

from shared.envelope import Refusal
from shared.messages import AgentSpec, Network, OnLost, OnPartition, SandboxKind
from spoke.core.policy import Policy

# Below this not even a shell starts; bubblewrap's own process needs part of it.
_MIN_MEMORY_BYTES: Final = 4 * 1024**2
# The sandbox's init and the agent itself.
_MIN_PIDS: Final = 2


def judge(spec: AgentSpec, policy: Policy) -> tuple[Refusal, str] | None:
    """Return why this may not run here (the first reason found), or None if it may."""
    for reason in _objections(spec, policy):
        return Refusal.POLICY, reason
    return None


def _objections(spec: AgentSpec, policy: Policy) -> Iterator[str]:
    if spec.sandbox not in policy.kinds:
        yield f"sandbox kind {spec.sandbox} is not offered here, only {', '.join(policy.kinds) or 'none'}"
    unknown = sorted(set(spec.mounts) - set(policy.mounts))
    if unknown:
        yield f"no mount {', '.join(unknown)} here, only {', '.join(policy.mounts) or 'none'}"
    if spec.network is Network.HOST and not policy.host_network:
        yield "the host's network is not allowed here"
    if spec.on_lost is OnLost.RERUN:
        yield "on_lost: rerun is not supported yet"
    if spec.on_partition is OnPartition.STOP:
        yield "on_partition: stop is not supported yet"
    if spec.sandbox is not SandboxKind.SIMULATED:
        yield from _cannot_start(spec)


def _cannot_start(spec: AgentSpec) -> Iterator[str]:
    if not spec.command or not spec.command[0]:
        yield "there is no command to run"
    # execve ends a string at NUL, so the agent would run something else than what was signed.
    if any("\0" in text for text in (*spec.command, *spec.env, *spec.env.values())):
        yield "a command or an environment variable holds a NUL"
    if any(not name or "=" in name for name in spec.env):
        yield "an environment variable's name is empty or holds '='"
    if spec.limits.memory_bytes < _MIN_MEMORY_BYTES:
        yield f"memory_bytes is {spec.limits.memory_bytes}, at least {_MIN_MEMORY_BYTES} are needed"
    if spec.limits.pids < _MIN_PIDS:
        yield f"pids is {spec.limits.pids}, at least {_MIN_PIDS} are needed"
