"""May it enter, and as what: a spawn request and its agent type become one complete order.

The order holds everything that is fixed from now on. What the request leaves out comes from the type, what the type
leaves out from the defaults here. All of this is decided before anything is stored, so a bad request costs nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from hub.schemas import NAME_OF_PRIORITY, PRIORITY_NAMES, AgentType, Resources, SpawnRequest
from shared.errors import BadInputError
from shared.ids import sha256
from shared.messages import (
    AgentSpec,
    Limits,
    Network,
    OnLost,
    OnPartition,
    SandboxKind,
    Simulation,
    Stderr,
)

DEFAULT_PRIORITY: Final = 5
DEFAULT_MAX_RETRIES: Final = 3
DEFAULT_GRACE_S: Final = 10.0
# A spec travels in a command item of at most 64 KiB, beside ids and the trace.
MAX_SPEC_BYTES: Final = 60 * 1024
# What a spoke takes (`AgentSpec`): type and request together may come to more than either may hold.
MAX_ENV: Final = 128
MAX_MOUNTS: Final = 16

_encode = msgspec.json.Encoder().encode
# The order of names in an object says nothing, so it must not make another request of the same one.
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode
T = TypeVar("T")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One agent that may enter; `request_sha256` tells a repeated request from another one under the same key."""

    tenant: str
    actor: str
    key: str | None
    request_sha256: str
    spec: AgentSpec
    labels: dict[str, str]
    selector: dict[str, str]
    spoke: str | None
    hold: bool
    start_ms: int | None
    trace: str


def admit(
    request: SpawnRequest,
    types: Mapping[str, AgentType],
    *,
    tenant: str,
    actor: str,
    key: str | None,
    trace: str,
    now_ms: int,
) -> Order:
    """Return the complete order, or raise BadInputError that names the field and what it takes."""
    kind = _type_of(request, types)
    _refuse_what_is_not_there_yet(request)
    start_ms = _start_ms(request, now_ms)
    deadline_ms = None if request.deadline is None else int(request.deadline.timestamp() * 1000)
    if deadline_ms is not None and deadline_ms <= (start_ms or now_ms):
        raise BadInputError("`deadline` lies before the start: the agent could never run")
    spec = _spec(request, kind, deadline_ms, now_ms)
    _refuse_what_does_not_fit(spec)
    return Order(
        tenant=tenant,
        actor=actor,
        key=key,
        request_sha256=sha256(_encode_sorted(request)),
        spec=spec,
        labels=request.labels,
        selector={**(kind.selector if kind else {}), **request.selector},
        spoke=request.spoke,
        hold=request.hold,
        start_ms=start_ms,
        trace=trace,
    )


def priority_level(priority: int | str | None) -> int | None:
    """Return the level 1-10 of a number or a name."""
    return PRIORITY_NAMES[priority] if isinstance(priority, str) else priority


def priority_name(level: int) -> str:
    """Return the nearest name at or below a level."""
    return NAME_OF_PRIORITY[level]


def _type_of(request: SpawnRequest, types: Mapping[str, AgentType]) -> AgentType | None:
    simulated = request.sandbox is SandboxKind.SIMULATED
    if request.type is None and request.command is None and not simulated:
        raise BadInputError("give a `type` (see GET /v1/types) or a `command`")
    if request.type is not None and request.command is not None:
        raise BadInputError("give `type` or `command`, not both; `args` are appended to either")
    if request.simulation is not None and not simulated:
        raise BadInputError("`simulation` goes with `sandbox: simulated`")
    if request.type is None:
        return None
    kind = types.get(request.type)
    if kind is None:
        known = ", ".join(sorted(types)[:20]) or "none yet"
        raise BadInputError(
            f"no agent type `{request.type}`; there are: {known}", code="unknown_type"
        )
    return kind


def _refuse_what_is_not_there_yet(request: SpawnRequest) -> None:
    if request.after:
        raise BadInputError(
            "`after` (dependencies) is not supported yet", code="not_supported_yet"
        )
    if request.on_lost is OnLost.RERUN:
        raise BadInputError("`on_lost: rerun` is not supported yet", code="not_supported_yet")
    if request.on_partition is OnPartition.STOP:
        raise BadInputError("`on_partition: stop` is not supported yet", code="not_supported_yet")


def _refuse_what_does_not_fit(spec: AgentSpec) -> None:
    if len(spec.env) > MAX_ENV:
        raise BadInputError(
            f"`env` of type and request together has {len(spec.env)} names, at most {MAX_ENV} fit"
        )
    if len(spec.mounts) > MAX_MOUNTS:
        raise BadInputError(
            f"`mounts` of type and request together are {len(spec.mounts)}, at most {MAX_MOUNTS} fit"
        )
    size = len(_encode(spec))
    if size > MAX_SPEC_BYTES:
        raise BadInputError(
            f"command, args, env and input take {size} bytes together, at most {MAX_SPEC_BYTES} fit into a command"
        )


def _start_ms(request: SpawnRequest, now_ms: int) -> int | None:
    if request.delay_s is not None and request.start_at is not None:
        raise BadInputError("give `delay_s` or `start_at`, not both")
    if request.delay_s:
        return now_ms + math.ceil(request.delay_s * 1000)
    if request.start_at is not None:
        start_ms = int(request.start_at.timestamp() * 1000)
        return start_ms if start_ms > now_ms else None
    return None


def _spec(
    request: SpawnRequest, kind: AgentType | None, deadline_ms: int | None, now_ms: int
) -> AgentSpec:
    timeout_s = _first(request.timeout_s, kind and kind.timeout_s)
    grace_s = _first(request.grace_s, kind and kind.grace_s, DEFAULT_GRACE_S)
    level = _first(
        priority_level(request.priority), kind and priority_level(kind.priority), DEFAULT_PRIORITY
    )
    base = kind.command if kind else request.command or []
    mounts = (*(kind.mounts if kind else ()), *request.mounts)
    return AgentSpec(
        type=kind.name if kind else "",
        command=(*base, *request.args),
        env={**(kind.env if kind else {}), **request.env},
        input=request.input,
        sandbox=_required(request.sandbox, kind and kind.sandbox, SandboxKind.BUBBLEWRAP),
        network=_required(request.network, kind and kind.network, Network.NONE),
        mounts=tuple(dict.fromkeys(mounts)),
        limits=_limits((request.resources, *((kind.resources,) if kind else ()))),
        priority=level or DEFAULT_PRIORITY,
        arrived_ms=now_ms,
        deadline_ms=deadline_ms,
        timeout_ms=None if timeout_s is None else max(1, math.ceil(timeout_s * 1000)),
        grace_ms=math.ceil((grace_s or 0.0) * 1000),
        max_retries=_required(request.max_retries, kind and kind.max_retries, DEFAULT_MAX_RETRIES),
        on_lost=request.on_lost or OnLost.WAIT,
        on_partition=request.on_partition or OnPartition.CONTINUE,
        stderr=_required(request.stderr, kind and kind.stderr, Stderr.MERGED),
        handles_sigterm=kind.handles_sigterm if kind else False,
        weight=1,
        simulation=_simulation(request),
    )


def _limits(sources: Sequence[Resources]) -> Limits:
    cpu = _first(*(s.cpu for s in sources))
    defaults = Limits()
    return Limits(
        cpu_milli=defaults.cpu_milli if cpu is None else max(1, math.ceil(cpu * 1000)),
        memory_bytes=_required(*(s.memory_bytes for s in sources), defaults.memory_bytes),
        pids=_required(*(s.pids for s in sources), defaults.pids),
        disk_bytes=_required(*(s.disk_bytes for s in sources), defaults.disk_bytes),
        output_bytes=_required(*(s.output_bytes for s in sources), defaults.output_bytes),
    )


def _simulation(request: SpawnRequest) -> Simulation | None:
    if request.sandbox is not SandboxKind.SIMULATED:
        return None
    wish = request.simulation
    if wish is None:
        return Simulation()
    return Simulation(
        duration_ms=math.ceil(wish.duration_s * 1000),
        exit_code=wish.exit_code,
        output=wish.output,
        crash_per_mille=round(wish.crash_rate * 1000),
    )


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _required(*values: T | None) -> T:
    """Like `_first`; the last value is a default and never None."""
    value = _first(*values)
    if value is None:
        raise AssertionError("the last value is the default")
    return value
