"""Where should it run: which spokes can take an agent, which of them is best, and why it waits when none can.

A spoke *fits* when it meets what the agent requires; it *has credit* when it may take one more now. The policy so far
is `least-loaded`: the smallest share of slots in use, then the name. Refusals of a site's policy exclude (agent,
spoke) until that policy's digest changes. Every "no" has its sentence, because an operator will ask.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from shared.ids import Name
from shared.messages import AgentSpec, Network, Offer, SandboxKind
from shared.trust import SKEW_MS

_encode = msgspec.json.Encoder(order="deterministic").encode


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What decides where an agent may go; equal requirements have equal signatures."""

    pinned: Name | None
    selector: dict[str, str]
    sandbox: SandboxKind
    network: Network
    mounts: tuple[str, ...]

    def signature(self) -> str:
        return _encode(self).decode()


class Candidate(msgspec.Struct, kw_only=True):
    """One spoke as placement sees it; `credit` and `load` change while a transaction places."""

    id: str
    online: bool
    active: bool
    paused: bool
    cordoned: bool
    full: bool
    skew_ms: int
    trouble: str  # what its site says is wrong, empty while all is well
    offer: Offer | None
    credit: int
    load: int


# (spoke) → (policy digest at the time, reason): what that agent was refused.
Exclusions = Mapping[str, tuple[str, str]]
NO_EXCLUSIONS: Final[Exclusions] = {}


def requirements(spec: AgentSpec, selector: Mapping[str, str], pinned: str | None) -> Requirements:
    """Return what decides where an agent may go."""
    return Requirements(
        pinned=pinned,
        selector=dict(sorted(selector.items())),
        sandbox=spec.sandbox,
        network=spec.network,
        mounts=tuple(sorted(spec.mounts)),
    )


def parse_signature(signature: str) -> Requirements:
    return msgspec.json.decode(signature, type=Requirements)


def credit(offer: Offer, unfinished: int, *, full: bool) -> int:
    """Return how many more agents a spoke may be given: min(slots + prefetch, cap) less what is unfinished there."""
    return 0 if full else max(0, min(offer.slots + offer.prefetch, offer.cap) - unfinished)


def unfit(wanted: Requirements, spoke: Candidate) -> str | None:
    """Return why a spoke cannot take such an agent, apart from credit, or None when it can."""
    return _out_of_service(spoke) or (
        _missing(wanted, spoke.offer) if spoke.offer is not None else None
    )


def _out_of_service(spoke: Candidate) -> str | None:
    reasons = (
        (spoke.offer is None or not spoke.online, "not connected"),
        (not spoke.active, "suspended"),
        (spoke.cordoned, "cordoned"),
        (spoke.paused, "its queue is paused"),
        (bool(spoke.trouble), f"its site is in trouble: {spoke.trouble}"),
        (abs(spoke.skew_ms) > SKEW_MS, f"its clock is off by {spoke.skew_ms} ms (spoke_clock)"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _missing(wanted: Requirements, offer: Offer) -> str | None:
    labels = [
        f"{key}={value}"
        for key, value in wanted.selector.items()
        if offer.labels.get(key) != value
    ]
    if labels:
        return f"lacks the label {', '.join(labels)}"
    if wanted.sandbox not in offer.kinds:
        return f"offers no {wanted.sandbox} sandbox"
    mounts = [mount for mount in wanted.mounts if mount not in offer.mounts]
    return f"offers no mount {', '.join(mounts)}" if mounts else None


def fitting(wanted: Requirements, spokes: Iterable[Candidate]) -> list[Candidate]:
    """Return the spokes that could take such an agent, whether or not they have credit now."""
    return [spoke for spoke in _reach(wanted, spokes) if unfit(wanted, spoke) is None]


def choose(fits: Sequence[Candidate], exclusions: Exclusions = NO_EXCLUSIONS) -> Candidate | None:
    """Return the least loaded spoke with credit that did not refuse this agent, or None."""
    open_ = [spoke for spoke in fits if spoke.credit > 0 and not _is_excluded(spoke, exclusions)]
    return min(open_, key=_load, default=None)


def why_pending(
    wanted: Requirements, spokes: Sequence[Candidate], exclusions: Exclusions = NO_EXCLUSIONS
) -> str:
    """Return, in a sentence, why an agent with these requirements is not placed."""
    reach = _reach(wanted, spokes)
    if not reach:
        return (
            f"spoke `{wanted.pinned}` is not known" if wanted.pinned else "no spoke is known yet"
        )
    return "; ".join(f"{spoke.id}: {_why_not(wanted, spoke, exclusions)}" for spoke in reach)


def _why_not(wanted: Requirements, spoke: Candidate, exclusions: Exclusions) -> str:
    reason = unfit(wanted, spoke)
    if reason is not None:
        return reason
    if _is_excluded(spoke, exclusions):
        return f"refused it ({exclusions[spoke.id][1]})"
    if spoke.full:
        return "its queue is full (queue_full)"
    return "no credit left" if spoke.credit <= 0 else "has room, next in line"


def _reach(wanted: Requirements, spokes: Iterable[Candidate]) -> list[Candidate]:
    return [spoke for spoke in spokes if wanted.pinned is None or spoke.id == wanted.pinned]


def _is_excluded(spoke: Candidate, exclusions: Exclusions) -> bool:
    refused = exclusions.get(spoke.id)
    return refused is not None and spoke.offer is not None and refused[0] == spoke.offer.policy


def _load(spoke: Candidate) -> tuple[float, str]:
    slots = spoke.offer.slots if spoke.offer is not None else 1
    return (spoke.load / slots, spoke.id)
