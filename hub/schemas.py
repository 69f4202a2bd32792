"""What the REST API takes and gives: the hub's public face, version 1.

Requests are strict (`forbid_unknown_fields`) and carry their constraints, so that OpenAPI, validation and error
messages come from one place. Replies are plain facts: times are RFC 3339 with `Z`, durations seconds, sizes bytes.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared.ids import Name, Uuid7
from shared.lifecycle import State
from shared.messages import ExitKind, LogStream, Network, OnLost, OnPartition, SandboxKind, Stderr

PRIORITY_NAMES = {"critical": 10, "urgent": 10, "high": 8, "normal": 5, "low": 3, "bulk": 1}
# The name of each level: the nearest named one at or below.
NAME_OF_PRIORITY = {10: "critical", 9: "high", 8: "high", 7: "normal", 6: "normal", 5: "normal", 4: "low", 3: "low",
                    2: "bulk", 1: "bulk"}  # fmt: skip

Seconds = Annotated[float, Meta(ge=0, le=31_536_000, description="seconds")]
LabelKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$(?!\n)")]
LabelValue = Annotated[str, Meta(max_length=256)]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=32)]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$(?!\n)")]
EnvValue = Annotated[str, Meta(max_length=8_192, pattern=r"^[^\u0000]*$")]
Argument = Annotated[str, Meta(max_length=16_384, pattern=r"^[^\u0000]*$")]
PriorityName = Annotated[str, Meta(pattern=r"^(critical|urgent|high|normal|low|bulk)$(?!\n)")]
PriorityLevel = Annotated[int, Meta(ge=1, le=10)]
Instant = Annotated[datetime, Meta(tz=True)]
# Visible ASCII: it travels in a header.
IdempotencyKey = Annotated[
    str, Meta(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$(?!\n)")
]
LabelFilter = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^\u0000]{0,256}$(?!\n)",
        description="`key=value`",
    ),
]
LogPosition = Annotated[
    str,
    Meta(
        pattern=r"^[1-9][0-9]{0,11}\.[1-9][0-9]{0,8}\.[0-9]{1,15}$(?!\n)",
        description="generation.attempt.offset",
    ),
]
EventId = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what comes in."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what goes out."""


class Resources(Request, frozen=True, kw_only=True):
    """What one attempt may use; what is left out comes from the agent type or the defaults."""

    cpu: Annotated[float, Meta(ge=0.01, le=1024, description="cores")] | None = None
    memory_bytes: Annotated[int, Meta(ge=4 * 1024**2, le=2**50)] | None = None
    pids: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    disk_bytes: Annotated[int, Meta(ge=64 * 1024, le=2**50)] | None = None
    output_bytes: Annotated[int, Meta(ge=1024, le=2**40)] | None = None


class SimulationRequest(Request, frozen=True, kw_only=True):
    """For `sandbox: simulated`: what to pretend."""

    duration_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    exit_code: Annotated[int, Meta(ge=0, le=255)] = 0
    output: Annotated[str, Meta(max_length=1024)] = ""
    crash_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0


class SpawnRequest(Request, frozen=True, kw_only=True):
    """One agent to spawn: a `type` from the catalogue or a bare `command`, and how to run it."""

    type: Name | None = None
    command: Annotated[list[Argument], Meta(min_length=1, max_length=128)] | None = None
    args: Annotated[
        list[Argument], Meta(max_length=128, description="appended to the command")
    ] = []
    input: Annotated[
        str, Meta(max_length=32_768, description="the agent finds it in the file $FELLOE_INPUT")
    ] = ""
    env: Annotated[dict[EnvName, EnvValue], Meta(max_length=128)] = {}
    labels: Labels = {}
    selector: Annotated[
        dict[LabelKey, LabelValue], Meta(max_length=32, description="labels the spoke must have")
    ] = {}
    spoke: Annotated[Name, Meta(description="this spoke and no other")] | None = None
    priority: PriorityLevel | PriorityName | None = None
    after: Annotated[list[Uuid7], Meta(max_length=256)] = []
    delay_s: Seconds | None = None
    start_at: Instant | None = None
    deadline: (
        Annotated[datetime, Meta(tz=True, description="not started by then: expired")] | None
    ) = None
    max_retries: Annotated[int, Meta(ge=0, le=100)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    grace_s: (
        Annotated[float, Meta(ge=0, le=3_600, description="between SIGTERM and SIGKILL")] | None
    ) = None
    resources: Resources = Resources()
    sandbox: SandboxKind | None = None
    network: Network | None = None
    mounts: Annotated[
        list[Name], Meta(max_length=16, description="site folders, by the names their owner gave")
    ] = []
    stderr: Stderr | None = None
    hold: bool = False
    on_lost: OnLost | None = None
    on_partition: OnPartition | None = None
    simulation: SimulationRequest | None = None


# Read one by one, so that a malformed item is that item's problem and not the whole batch's.
BatchItem = Annotated[
    msgspec.Raw,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"$ref": "#/components/schemas/SpawnRequest"},
                {"description": "anything else: that item's result is a problem"},
            ]
        }
    ),
]


class BatchRequest(Request, frozen=True, kw_only=True):
    """Up to 1,000 agents; each item has its own result, and its own idempotency key if it wants one."""

    agents: Annotated[list[BatchItem], Meta(min_length=1, max_length=1_000)]
    idempotency_keys: Annotated[
        list[IdempotencyKey | None],
        Meta(max_length=1_000, description="none at all, or one per agent (null: none)"),
    ] = []


class KillRequest(Request, frozen=True, kw_only=True):
    grace_s: Annotated[float, Meta(ge=0, le=3_600)] | None = None
    reason: Annotated[str, Meta(max_length=256)] = ""


class DeadLettersRequest(Request, frozen=True, kw_only=True):
    """Which dead letters: these ids, or all that match (`all: true`), at most 1,000 in one call."""

    agents: Annotated[list[Uuid7], Meta(max_length=1_000)] = []
    all: bool = False
    reason: Annotated[str, Meta(max_length=256)] = ""


class AgentType(Request, frozen=True, kw_only=True):
    """An entry of the catalogue: what to start, within which limits, with which defaults."""

    name: Name
    command: Annotated[list[Argument], Meta(min_length=1, max_length=128)]
    description: Annotated[str, Meta(max_length=512)] = ""
    env: Annotated[dict[EnvName, EnvValue], Meta(max_length=128)] = {}
    resources: Resources = Resources()
    selector: Labels = {}
    priority: PriorityLevel | PriorityName | None = None
    max_retries: Annotated[int, Meta(ge=0, le=100)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    grace_s: Annotated[float, Meta(ge=0, le=3_600)] | None = None
    sandbox: SandboxKind | None = None
    network: Network | None = None
    mounts: Annotated[list[Name], Meta(max_length=16)] = []
    stderr: Stderr | None = None
    handles_sigterm: Annotated[
        bool, Meta(description="it may be pid 1 of its namespace: saves a process")
    ] = False


# --- what stands behind the `?` ----------------------------------------------------------------------


# `UNSET` and not `None`: in a query `null` is four letters, and a spoke may be called that.


class AgentsQuery(Request, frozen=True, kw_only=True):
    """Which agents: all that is given must hold; several states or labels may be given."""

    state: list[State] = []
    spoke: Name | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    label: Annotated[list[LabelFilter], Meta(max_length=32)] = []
    dead_letter: bool | UnsetType = UNSET
    cursor: Annotated[Uuid7, Meta(description="`next` of the page before")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


class EventsQuery(Request, frozen=True, kw_only=True):
    """From where on; as JSON one page, as `text/event-stream` all that follows and then what comes."""

    after: Annotated[EventId, Meta(description="`id` of the last known event")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100


class LogsQuery(Request, frozen=True, kw_only=True):
    """From which position on, and whether to wait for what comes."""

    start: LogPosition = msgspec.field(name="from", default="1.1.0")
    follow: bool | UnsetType = UNSET


class DeadLettersQuery(Request, frozen=True, kw_only=True):
    """Which dead letters."""

    spoke: Name | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    cursor: Uuid7 | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=500)] = 50


# --- what goes out -----------------------------------------------------------------------------------


class FieldProblem(View, frozen=True, kw_only=True):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(View, frozen=True, kw_only=True):
    """RFC 9457 problem details; `code` is stable and what programs may depend on."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []


class PriorityView(View, frozen=True, kw_only=True):
    level: int
    name: str


class ExitView(View, frozen=True, kw_only=True):
    kind: ExitKind
    code: int | None
    signal: int | None
    detail: str
    output_bytes: int


class KillView(View, frozen=True, kw_only=True):
    """A kill is certain only when it is confirmed: the sandbox was seen gone, and signed for."""

    requested_at: str
    accepted_at: str | None
    confirmed_at: str | None


class AgentView(View, frozen=True, kw_only=True):
    """One agent: the last proven facts, and their age."""

    id: str
    tenant: str
    type: str
    command: list[str]
    state: State
    reason: str
    position: int | None
    generation: int
    attempt: int
    priority: PriorityView
    spoke: str | None
    selector: dict[str, str]
    labels: dict[str, str]
    sandbox: SandboxKind
    created_at: str
    updated_at: str
    observed_at: str | None
    stale: bool
    start_at: str | None
    deadline: str | None
    retry_at: str | None
    started_at: str | None
    ended_at: str | None
    exit: ExitView | None
    kill: KillView | None
    max_retries: int
    dead_letter: bool


class AgentPage(View, frozen=True, kw_only=True):
    """A page of agents, newest first; `next` is the cursor of the next page, None at the end."""

    agents: list[AgentView]
    next: str | None


class SpawnResult(View, frozen=True, kw_only=True):
    """The result of one item of a batch: an agent or a problem."""

    index: int
    agent: AgentView | None
    created: bool
    problem: Problem | None


class BatchResult(View, frozen=True, kw_only=True):
    results: list[SpawnResult]
    accepted: int
    refused: int


class StatusView(View, frozen=True, kw_only=True):
    """What the spoke itself says right now; `live` False: it did not answer, and `reason` says why."""

    agent: AgentView
    live: bool
    reason: str
    known: bool
    state: str
    attempt: int
    position: int | None
    processes: int
    output_bytes: int
    since: str | None


class EventView(View, frozen=True, kw_only=True):
    """One fact in an agent's life; `id` rises over the whole hub and is what `Last-Event-ID` takes."""

    id: int
    agent: str
    at: str
    recorded_at: str
    kind: str
    state: State
    reason: str
    generation: int
    attempt: int
    spoke: str | None


class LogView(View, frozen=True, kw_only=True):
    """A piece of output, or a word about it; `offset` counts the attempt's bytes, `text` is them as UTF-8."""

    generation: int
    attempt: int
    stream: LogStream
    offset: int
    text: str
    reason: str


class EventPage(View, frozen=True, kw_only=True):
    events: list[EventView]
    next: int


class Counts(View, frozen=True, kw_only=True):
    """The five counts that operators know."""

    pending: int = 0
    active: int = 0
    delayed: int = 0
    completed: int = 0
    failed: int = 0


class QueueView(View, frozen=True, kw_only=True):
    """The agents at one spoke (`spoke` set), or all of them (`spoke` None, unplaced ones included)."""

    spoke: str | None
    counts: Counts
    paused: bool
    dead_letters: int


class QueuesView(View, frozen=True, kw_only=True):
    total: QueueView
    spokes: list[QueueView]


class SpokeView(View, frozen=True, kw_only=True):
    """One spoke as the hub sees it."""

    id: str
    connection: str  # pending, active, suspended, revoked
    state: str  # online, suspect, absent (never seen)
    reason: str
    incarnation: int
    observed_at: str | None
    slots: int
    credit: int
    running: int
    queued: int
    unfinished: int
    paused: bool
    cordoned: bool
    sandboxes: list[str]
    mounts: list[str]
    labels: dict[str, str]
    lacks: list[str]
    clock_skew_ms: int | None
    refusals: dict[str, int]
    version: str


class SpokesView(View, frozen=True, kw_only=True):
    spokes: list[SpokeView]


class TypesView(View, frozen=True, kw_only=True):
    types: list[AgentType]


class DeadLetterResult(View, frozen=True, kw_only=True):
    agent: str
    done: bool
    reason: str


class DeadLetterResults(View, frozen=True, kw_only=True):
    results: list[DeadLetterResult]
    done: int
    left: int


class HealthView(View, frozen=True, kw_only=True):
    """`ok` for the whole; each part says `ok` or what is wrong."""

    ok: bool
    parts: dict[str, str]


class AgentsHealthView(View, frozen=True, kw_only=True):
    """The seeds' `/agents/health`: how many agents stand well, and which do not."""

    healthy: int
    stale: int
    failing: int
    spokes_online: int
    spokes_suspect: int


class AgentsMetricsView(View, frozen=True, kw_only=True):
    """The seeds' `/agents/metrics` as JSON; `/metrics` has the same for Prometheus."""

    counts: Counts
    task_queue_depth: int
    pending_tasks_per_agent: float
    agent_utilization_ratio: float
