"""What hub and spoke say to each other: one struct per header and per item, version 1 of the wire.

A payload is one header and 1-256 items for one audience under one signature (`protocol.md`, "Header and items").
Everything is strict: unknown fields are refused, and every field is always written, so that encoding what was
decoded gives the received bytes again; `shared.trust` holds peers to that. Times are Unix milliseconds, sizes
bytes, CPU thousandths of a core: there are no floats on the wire. Fields change only with a new version.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from shared.ids import Name, Sha256, Uuid7
from shared.lifecycle import Fact

WIRE_VERSION: Final = 1
MAX_ENVELOPE_BYTES: Final = 256 * 1024
MAX_ITEMS: Final = 256
MAX_ITEM_BYTES: Final = 64 * 1024
# Room for the header and for base64 (4/3) under MAX_ENVELOPE_BYTES.
MAX_PAYLOAD_BYTES: Final = 180 * 1024

# Up to the end of the year 9999, the last that a datetime can show.
Ms = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Text = Annotated[str, Meta(max_length=1024)]
Priority = Annotated[int, Meta(ge=1, le=10)]
# No NUL: execve(2) ends its strings there. A name in the environment holds no `=` either.
Argument = Annotated[str, Meta(max_length=16_384, pattern=r"^[^\x00]*$(?!\n)")]
EnvName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00=]+$(?!\n)")]


class Purpose(StrEnum):
    """The DSSE payload types, one per purpose, so that no message can be taken for another kind."""

    COMMAND = "application/vnd.felloe.command.v1+json"
    REPLY = "application/vnd.felloe.reply.v1+json"
    EVENT = "application/vnd.felloe.event.v1+json"
    ACK = "application/vnd.felloe.ack.v1+json"
    HEARTBEAT = "application/vnd.felloe.heartbeat.v1+json"
    LOG = "application/vnd.felloe.log.v1+json"
    HELLO = "application/vnd.felloe.hello.v1+json"
    WELCOME = "application/vnd.felloe.welcome.v1+json"


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


class TaggedMessage(Message, frozen=True, kw_only=True, tag_field="op", tag=str.lower):
    """Base of the items that form a closed set."""


# --- headers -----------------------------------------------------------------------------------------


class CommandHeader(Message, frozen=True, kw_only=True):
    """From the hub to one spoke; `exp - iat` is at most ten minutes."""

    federation: Sha256
    iss: Name
    aud: Name
    inc: Count
    iat: Ms
    exp: Ms
    hub_epoch: Count
    evt_ack: Count


class AnswerHeader(Message, frozen=True, kw_only=True):
    """From the hub to one spoke, as the answer to the request whose envelope hashes to `re`."""

    federation: Sha256
    iss: Name
    aud: Name
    inc: Count
    iat: Ms
    hub_epoch: Count
    evt_ack: Count
    re: Sha256


class SpokeHeader(Message, frozen=True, kw_only=True):
    """From a spoke. No time window: (inc, seq) orders events, a counter heartbeats."""

    federation: Sha256
    iss: Name
    inc: Count
    iat: Ms


# --- what to run -------------------------------------------------------------------------------------


class SandboxKind(StrEnum):
    BUBBLEWRAP = "bubblewrap"
    PROCESS = "process"  # no isolation: development and macOS
    SIMULATED = "simulated"  # only pretends: load tests


class Network(StrEnum):
    NONE = "none"
    HOST = "host"


class OnLost(StrEnum):
    WAIT = "wait"
    RERUN = "rerun"


class OnPartition(StrEnum):
    CONTINUE = "continue"
    STOP = "stop"


class Stderr(StrEnum):
    MERGED = "merged"
    SEPARATE = "separate"


class Limits(Message, frozen=True, kw_only=True):
    """What one attempt may use; over `output_bytes` shipping stops, at twice that the attempt is ended."""

    cpu_milli: Positive = 1_000
    memory_bytes: Positive = 512 * 1024**2
    pids: Positive = 256
    disk_bytes: Positive = 256 * 1024**2
    output_bytes: Positive = 16 * 1024**2


class Simulation(Message, frozen=True, kw_only=True):
    """What a `simulated` sandbox pretends: how long, how it ends, what it writes."""

    duration_ms: Count = 0
    exit_code: Annotated[int, Meta(ge=0, le=255)] = 0
    output: Text = ""
    crash_per_mille: Annotated[int, Meta(ge=0, le=1000)] = 0


class AgentSpec(Message, frozen=True, kw_only=True):
    """What to run and within which bounds: fixed when the agent was created, carried in every Spawn."""

    type: Annotated[str, Meta(max_length=63)]  # name in the catalogue, or "" for a bare command
    command: Annotated[tuple[Argument, ...], Meta(max_length=256)]
    env: Annotated[dict[EnvName, Argument], Meta(max_length=128)]
    input: Annotated[str, Meta(max_length=32_768)]  # the agent finds it at $FELLOE_INPUT
    sandbox: SandboxKind
    network: Network
    # Folders that the site owner offers by name.
    mounts: Annotated[tuple[Name, ...], Meta(max_length=16)]
    limits: Limits
    priority: Priority
    arrived_ms: Ms  # when the hub accepted it: ageing counts from here
    deadline_ms: Ms | None  # not started by then: `expired`
    timeout_ms: Positive | None
    grace_ms: Count  # between SIGTERM and SIGKILL
    max_retries: Annotated[int, Meta(ge=0, le=100)]
    on_lost: OnLost
    on_partition: OnPartition
    stderr: Stderr
    handles_sigterm: bool  # it may be pid 1 of its namespace: saves a process
    weight: Annotated[int, Meta(ge=1, le=1000)]  # of its tenant, for the fair share
    simulation: Simulation | None


# --- commands ----------------------------------------------------------------------------------------


class _Command(TaggedMessage, frozen=True, kw_only=True):
    """What every command item carries: its id, who asked, for whom, and the W3C traceparent."""

    id: Uuid7
    actor: Annotated[str, Meta(max_length=128)]
    tenant: Name
    trace: Annotated[str, Meta(max_length=55)]


class Spawn(_Command, frozen=True, kw_only=True):
    agent: Uuid7
    gen: Positive
    spec: AgentSpec


class Kill(_Command, frozen=True, kw_only=True):
    """Every generation up to `gen` must be gone; `grace_ms` None means the agent's own."""

    agent: Uuid7
    gen: Positive
    grace_ms: Count | None
    reason: Text


class Remove(_Command, frozen=True, kw_only=True):
    """Drop from the queue what has not started: ends as `killed`, reason `removed`."""

    agent: Uuid7
    gen: Positive


class Status(_Command, frozen=True, kw_only=True):
    agent: Uuid7
    gen: Positive
    reader: Name


class Tail(_Command, frozen=True, kw_only=True):
    """Send this generation's output from (`attempt`, `offset`) on, until `lease_ms` passes without renewal."""

    agent: Uuid7
    gen: Positive
    attempt: Positive
    offset: Count
    lease_ms: Positive
    follow: bool
    reader: Name


class Pause(_Command, frozen=True, kw_only=True):
    rev: Positive


class Resume(_Command, frozen=True, kw_only=True):
    rev: Positive


class Cordon(_Command, frozen=True, kw_only=True):
    rev: Positive
    on: bool


class Drain(_Command, frozen=True, kw_only=True):
    rev: Positive


class RefreshTrust(_Command, frozen=True, kw_only=True):
    version: Positive


Command = Spawn | Kill | Remove | Status | Tail | Pause | Resume | Cordon | Drain | RefreshTrust
# Wanted states carry a revision: a lower one has no effect.
WantedState = Pause | Resume | Cordon | Drain
# Queries change nothing, so they are neither in the inbox nor in the outbox.
Query = Status | Tail


# --- how an attempt ended ----------------------------------------------------------------------------


class ExitKind(StrEnum):
    EXITED = "exited"  # with its code
    SIGNALED = "signaled"  # ended by a signal
    START_FAILED = "start_failed"  # the command could not be executed: the author's
    SETUP_FAILED = "setup_failed"  # the sandbox could not be made: ours
    TIMEOUT = "timeout"  # over the agent's own time limit
    OUT_OF_MEMORY = "out_of_memory"  # over its memory limit
    OUTPUT_CAP = "output_cap"  # wrote twice what it may
    KILLED = "killed"  # by a kill command
    UNKNOWN = "exit_unknown"  # proven gone, no code recorded


class Exit(Message, frozen=True, kw_only=True):
    """How one attempt ended; `code` with EXITED, `signal` with SIGNALED."""

    kind: ExitKind
    code: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    detail: Text = ""
    started_ms: Ms | None = None
    ended_ms: Ms | None = None
    output_bytes: Count = 0


# --- from the spoke ----------------------------------------------------------------------------------


class EventKind(StrEnum):
    """Lifecycle facts under their own names, and what else a spoke says of a command."""

    QUEUED = Fact.QUEUED.value
    RUNNING = Fact.RUNNING.value
    RETRYING = Fact.RETRYING.value
    SUCCEEDED = Fact.SUCCEEDED.value
    FAILED = Fact.FAILED.value
    KILLED = Fact.KILLED.value
    EXPIRED = Fact.EXPIRED.value
    KILL_ACCEPTED = "kill_accepted"
    APPLIED = "applied"  # a wanted state
    REFUSED = "refused"  # the item, with its reason


class Event(Message, frozen=True, kw_only=True):
    """One fact at the spoke; `seq` rises by one within an incarnation and is never reused."""

    seq: Positive
    kind: EventKind
    cmd: Uuid7
    cmd_sha256: Sha256
    agent: Uuid7 | None
    gen: Count
    attempt: Count
    fence: Count
    reason: Text
    at: Ms
    exit: Exit | None
    retry_at: Ms | None


class QueueCounts(Message, frozen=True, kw_only=True):
    queued: Count
    running: Count
    retrying: Count
    dead: Count


class Heartbeat(Message, frozen=True, kw_only=True):
    """Liveness with capacity, every ten seconds; `refusals` counts header-level refusals by name.

    `trouble` says what keeps the site from working, in words, and is empty while all is well; counts and inventory are
    then the last known.
    """

    counter: Positive
    head_seq: Count
    counts: QueueCounts
    full: bool
    paused: bool
    cordoned: bool
    rev: Count
    inventory: Sha256
    policy: Sha256
    trust_version: Count
    trouble: Text
    refusals: dict[str, Count]


class Offer(Message, frozen=True, kw_only=True):
    """What a spoke can do: changes only when its daemon starts."""

    slots: Positive
    prefetch: Count
    cap: Positive
    kinds: tuple[SandboxKind, ...]
    mounts: tuple[Name, ...]
    labels: dict[str, str]
    lacks: tuple[Text, ...]  # controls that this host cannot enforce, allowed by the site's policy
    policy: Sha256
    version: Text


class Hello(Message, frozen=True, kw_only=True):
    """The first word after each connect."""

    nonce: Sha256
    incarnation: Count
    head_seq: Count
    inventory: Sha256
    versions: tuple[Positive, ...]
    offer: Offer


class Reply(Message, frozen=True, kw_only=True):
    """The answer to a Status: what the spoke itself knows of the agent right now."""

    cmd: Uuid7
    agent: Uuid7
    gen: Count
    known: bool
    state: Text
    attempt: Count
    fence: Count
    position: Count | None  # in its tenant's queue, 1 is next
    since: Ms | None
    processes: Count
    output_bytes: Count


class LogKind(StrEnum):
    DATA = "data"
    GAP = "gap"  # bytes that are gone, with the reason
    ATTEMPT_END = "attempt_end"
    END = "end"  # nothing more will come of this generation


class LogStream(StrEnum):
    OUT = "out"
    ERR = "err"


class LogChunk(Message, frozen=True, kw_only=True):
    """A piece of output; `cmd` is the Tail it answers."""

    cmd: Uuid7
    agent: Uuid7
    gen: Positive
    attempt: Count
    kind: LogKind
    stream: LogStream
    offset: Count
    data: bytes
    length: Count  # of a gap
    reason: Text


# --- answers from the hub ----------------------------------------------------------------------------


class Witness(Message, frozen=True, kw_only=True):
    """The newest row of a hub's audit chain: spokes keep it and refuse a lower one."""

    chain: Name
    n: Count
    hash: Sha256


class Ack(Message, frozen=True, kw_only=True):
    """Everything up to the header's `evt_ack` is committed at the hub."""

    witness: Witness | None


class Verdict(StrEnum):
    GO_ON = "go_on"
    NEW_INCARNATION = "new_incarnation"


class Welcome(Message, frozen=True, kw_only=True):
    """The answer to a Hello; the header's `inc` is the incarnation from now on."""

    nonce: Sha256
    verdict: Verdict
    version: Positive
    witness: Witness | None
