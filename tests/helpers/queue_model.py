"""What the spoke's queue is meant to do, said as plainly as possible: dictionaries, no speed, no Valkey.

It is the oracle of `tests/integration/test_queue_model.py`: after every step the real queue must say the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.messages import Command, Cordon, Drain, Kill, Pause, Remove, Resume, Spawn
from shared.trust import TrustedItem
from spoke.queue.entries import End, Note

MINUTE = 60_000
MEMORY = 630_000
TURN = 1_000_000


@dataclass
class KillMark:
    gen: int
    cmd: str
    reason: str
    grace: int | None


@dataclass
class ModelEntry:
    """One agent that is here."""

    spawn: Spawn
    state: str = "queued"
    attempt: int = 0
    retries: int = 0
    fence: int = 0
    ran: bool = False
    retry_at: int = 0
    kill: KillMark | None = None

    @property
    def is_leased(self) -> bool:
        return self.state in {"leased", "running"}

    def rank(self, now: int) -> tuple[int, int, str]:
        """The smallest goes first."""
        spec = self.spawn.spec
        steps = min(3, max(0, now - spec.arrived_ms) // (10 * MINUTE))
        level = 10 if spec.priority == 10 else min(9, spec.priority + steps)
        return -level, spec.arrived_ms, self.spawn.agent


@dataclass
class ModelEvent:
    seq: int
    kind: str
    cmd: str
    agent: str | None
    gen: int
    attempt: int
    reason: str
    closes: bool


@dataclass
class QueueModel:
    now: int = 0
    epoch: int = 0
    turn: int = 0
    incarnation: int = 1
    seq: int = 0
    evt_ack: int = 0
    rev: int = 0
    paused: bool = False
    cordoned: bool = False
    entries: dict[str, ModelEntry] = field(default_factory=dict)
    events: list[ModelEvent] = field(default_factory=list)
    inbox: dict[str, tuple[str, int | None]] = field(
        default_factory=dict
    )  # id → hash, forgotten at
    closed: dict[tuple[str, int, str], int | None] = field(default_factory=dict)  # → forgotten at
    equivocated: set[str] = field(default_factory=set)
    active: dict[str, int] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    unheard: list[str] = field(default_factory=list)  # leases whose answer was lost

    # --- what is asked of it ---

    def take_over(self, epoch: int) -> None:
        self.epoch, self.turn = max(epoch, self.epoch + 1), 0
        self.unheard = []

    def intake(self, items: Sequence[TrustedItem[Command]], cap: int) -> list[tuple[str, bool]]:
        return [self._judge(each, cap) for each in items]

    def lease(self, count: int) -> list[str]:
        for agent, entry in sorted(self.entries.items(), key=lambda pair: _deadline(pair[1])):
            if not entry.is_leased and not entry.ran and _deadline(entry)[0] <= self.now:
                self._close(agent, "expired", "deadline")
        for entry in self.entries.values():
            if entry.state == "retrying" and entry.retry_at <= self.now:
                entry.state = "queued"
                self._activate(entry.spawn.tenant)
        agents = [a for a in self.unheard if a in self.entries and self.entries[a].is_leased]
        self.unheard = []
        while len(agents) < count and self.active and not self.paused:
            agents.append(self._lease_one())
        return agents

    def started(self, notes: Sequence[Note]) -> list[bool]:
        results: list[bool] = []
        for note in notes:
            entry = self._noted(note)
            if entry is not None and entry.state != "running":
                entry.state, entry.ran = "running", True
                self._fact("running", entry, "")
            results.append(entry is not None)
        return results

    def finish(self, ends: Sequence[End]) -> list[bool]:
        results: list[bool] = []
        for end in ends:
            entry = self._noted(end)
            if entry is not None:
                self._finish(entry, end)
            results.append(entry is not None)
        return results

    def hand_back(self, notes: Sequence[Note]) -> list[bool]:
        results: list[bool] = []
        for note in notes:
            entry = self._noted(note)
            if entry is not None and entry.kill:
                self._close(note.agent, "killed", entry.kill.reason)
            elif entry is not None:
                entry.state, entry.attempt = "queued", entry.attempt - 1
                self._activate(entry.spawn.tenant)
            results.append(entry is not None)
        return results

    def acknowledge(self, evt_ack: int) -> None:
        if not self.evt_ack < evt_ack <= self.seq:
            return
        gone = ((self.now + MEMORY) // MINUTE + 1) * MINUTE
        for event in [e for e in self.events if e.seq <= evt_ack]:
            if event.reason == "equivocation":
                self.equivocated.discard(event.cmd)
                continue
            known = self.inbox.get(event.cmd)
            if known and known[1] is None:
                self.inbox[event.cmd] = (known[0], gone)
            for (agent, gen, how), until in self.closed.items():
                if event.closes and agent == event.agent and gen <= event.gen and until is None:
                    self.closed[agent, gen, how] = gone
        self.events = [e for e in self.events if e.seq > evt_ack]
        self.evt_ack = evt_ack

    def restart_journal(self, incarnation: int) -> None:
        if incarnation <= self.incarnation:
            return
        self.incarnation, self.seq, self.evt_ack = incarnation, 0, 0
        self.entries = {a: e for a, e in self.entries.items() if e.is_leased}
        for entry in self.entries.values():
            entry.state = "leased"
        for forgotten in (self.events, self.inbox, self.closed, self.equivocated):
            forgotten.clear()
        self.active, self.idle = {}, {}

    # --- what it says ---

    def counts(self) -> tuple[int, int, int]:
        states = [e.state for e in self.entries.values()]
        running = sum(e.is_leased for e in self.entries.values())
        return states.count("queued"), running, states.count("retrying")

    def position(self, agent: str, now: int) -> int | None:
        entry = self.entries[agent]
        if entry.state != "queued":
            return None
        return 1 + self._ready(entry.spawn.tenant, now).index(entry)

    # --- commands ---

    def _judge(self, trusted: TrustedItem[Command], cap: int) -> tuple[str, bool]:
        item = trusted.item
        known, until = self.inbox.get(item.id, (None, None))
        if known is not None and (until is None or self.now < until):
            if known == trusted.sha256:
                entry = self.entries.get(item.agent) if isinstance(item, Kill) else None
                return "duplicate", bool(
                    entry and entry.is_leased and entry.kill and entry.spawn.gen <= item.gen
                )
            if item.id not in self.equivocated:
                self.equivocated.add(item.id)
                self._answer("refused", item, "equivocation")
            return "equivocation", False
        before = self.seq
        verdict = self._take_in(item, cap)
        if self.seq > before:
            self.inbox[item.id] = (trusted.sha256, None)
        return verdict

    def _take_in(self, item: Any, cap: int) -> tuple[str, bool]:
        match item:
            case Spawn():
                return self._spawn(item, cap), False
            case Kill() | Remove():
                return self._kill(item)
            case Pause() | Resume() | Cordon() | Drain():
                is_newer = item.rev > self.rev
                if is_newer:
                    self._want(item)
                self._answer("applied", item)
                return ("accepted" if is_newer else "no_effect"), False
            case _:
                raise AssertionError(item)

    def _spawn(self, item: Spawn, cap: int) -> str:
        entry = self.entries.get(item.agent)
        marks = self._marks(item.agent)
        gen, how = max(marks, key=lambda mark: (mark[0], mark[1] == "ended"), default=(0, ""))
        if entry and entry.spawn.gen == item.gen:
            attempt = 0 if entry.state in {"queued", "leased"} else entry.attempt
            self._answer("queued" if not attempt else entry.state, item, attempt=attempt)
            return "no_effect"
        if item.gen == gen and how == "ended":
            return "no_effect"
        if item.gen <= gen or (entry and item.gen < entry.spawn.gen):
            self._not_here(item.id, item.agent, item.gen)
            return "no_effect"
        if entry or sum(not e.is_leased for e in self.entries.values()) >= cap:
            self._answer("refused", item, "superseded" if entry else "queue_full")
            return "refused"
        self.entries[item.agent] = ModelEntry(item)
        self._activate(item.tenant)
        self._answer("queued", item)
        return "accepted"

    def _kill(self, item: Kill | Remove) -> tuple[str, bool]:
        entry = self.entries.get(item.agent)
        is_meant = entry is not None and entry.spawn.gen <= item.gen
        if entry and is_meant and entry.is_leased and isinstance(item, Remove):
            self._answer("refused", item, "running")
            return "refused", False
        self._answer("kill_accepted", item)
        if not entry or not is_meant:
            self._not_here(item.id, item.agent, item.gen)
            return "accepted", False
        reason = (item.reason or "killed") if isinstance(item, Kill) else "removed"
        grace = item.grace_ms if isinstance(item, Kill) else None
        mark = entry.kill or KillMark(0, "", reason, None)
        graces = [g for g in (mark.grace, grace) if g is not None]
        mark.grace = min(graces) if graces else None
        if item.gen > mark.gen:
            mark.gen, mark.cmd = item.gen, item.id
        entry.kill = mark
        if not entry.is_leased:
            self._close(item.agent, "killed", reason)
        return "accepted", entry.is_leased

    def _want(self, item: Pause | Resume | Cordon | Drain) -> None:
        self.rev = item.rev
        if isinstance(item, Pause | Resume):
            self.paused = isinstance(item, Pause)
        else:
            self.cordoned = isinstance(item, Drain) or item.on

    # --- attempts ---

    def _lease_one(self) -> str:
        tenant = min(self.active, key=lambda name: (self.active[name], name))
        entry = self._ready(tenant, self.now)[0]
        self.turn += 1
        entry.state, entry.attempt = "leased", entry.attempt + 1
        entry.fence = (self.epoch << 32) + self.turn
        self.active[tenant] += TURN // entry.spawn.spec.weight
        self._rest(tenant)
        return entry.spawn.agent

    def _finish(self, entry: ModelEntry, end: End) -> None:
        if end.kind.value != "retrying":
            self._close(end.agent, end.kind.value, end.reason)
        elif entry.kill:
            self._close(end.agent, "killed", entry.kill.reason)
        else:
            assert end.retry_at is not None
            entry.state, entry.retry_at = "retrying", end.retry_at
            entry.retries += 1
            self._fact("retrying", entry, end.reason)

    def _noted(self, note: Note | End) -> ModelEntry | None:
        entry = self.entries.get(note.agent)
        wanted = (note.gen, note.attempt, note.fence)
        if entry and entry.is_leased and (entry.spawn.gen, entry.attempt, entry.fence) == wanted:
            return entry
        return None

    def _close(self, agent: str, kind: str, reason: str) -> None:
        entry = self.entries.pop(agent)
        self._fact(kind, entry, reason, closes=True)
        self._mark(agent, entry.spawn.gen, "ended")
        if entry.kill and entry.kill.gen > entry.spawn.gen:
            self._not_here(entry.kill.cmd, agent, entry.kill.gen)
        self._rest(entry.spawn.tenant)

    # --- closed marks ---

    def _mark(self, agent: str, gen: int, how: str) -> None:
        """Only the highest one without an acknowledgement is kept."""
        fresh = [mark for mark, until in self.closed.items() if mark[0] == agent and until is None]
        if all(mark[1] < gen for mark in fresh):
            for mark in fresh:
                del self.closed[mark]
            self.closed[agent, gen, how] = None

    def _marks(self, agent: str) -> Iterator[tuple[int, str]]:
        for (name, gen, how), until in self.closed.items():
            if name == agent and (until is None or self.now < until):
                yield gen, how

    # --- fair share ---

    def _ready(self, tenant: str, now: int) -> list[ModelEntry]:
        mine = (
            e for e in self.entries.values() if e.spawn.tenant == tenant and e.state == "queued"
        )
        return sorted(mine, key=lambda entry: entry.rank(now))

    def _activate(self, tenant: str) -> None:
        if tenant not in self.active:
            least = min(self.active.values(), default=0)
            self.active[tenant] = max(self.idle.pop(tenant, 0), least)

    def _rest(self, tenant: str) -> None:
        if tenant not in self.active or self._ready(tenant, self.now):
            return
        self.idle[tenant] = self.active.pop(tenant)
        if not self.active:
            self.idle = {}

    # --- events ---

    def _answer(self, kind: str, item: Any, reason: str = "", *, attempt: int = 0) -> None:
        agent, gen = getattr(item, "agent", None), getattr(item, "gen", 0)
        about = {"agent": agent, "gen": gen, "attempt": attempt, "reason": reason}
        self._event(kind, cmd=item.id, closes=False, **about)

    def _fact(self, kind: str, entry: ModelEntry, reason: str, *, closes: bool = False) -> None:
        spawn = entry.spawn
        about = {
            "agent": spawn.agent,
            "gen": spawn.gen,
            "attempt": entry.attempt,
            "reason": reason,
        }
        self._event(kind, cmd=spawn.id, closes=closes, **about)

    def _not_here(self, cmd: str, agent: str, gen: int) -> None:
        about = {"agent": agent, "gen": gen, "attempt": 0, "reason": "not_here"}
        self._event("killed", cmd=cmd, closes=True, **about)
        self._mark(agent, gen, "not_here")

    def _event(self, kind: str, **fields: Any) -> None:
        self.seq += 1
        self.events.append(ModelEvent(seq=self.seq, kind=kind, **fields))


def _deadline(entry: ModelEntry) -> tuple[float, str]:
    deadline = entry.spawn.spec.deadline_ms
    return (float("inf") if deadline is None else deadline), entry.spawn.agent
