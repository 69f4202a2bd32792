"""What people see: tables and lines made of views. Nothing here talks to anybody."""

from collections.abc import Sequence
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hub.schemas import (
    AgentType,
    AgentView,
    DeadLetterResults,
    EventView,
    QueuesView,
    QueueView,
    SpokeView,
    StatusView,
)
from shared.lifecycle import State

# The tail of an id is what differs: UUIDv7 begins with the time.
SHORT: Final = 8

_COLOURS: Final = {
    State.RUNNING: "green",
    State.SUCCEEDED: "bright_black",
    State.FAILED: "red",
    State.LOST: "red",
    State.EXPIRED: "yellow",
    State.KILLED: "magenta",
    State.RETRYING: "yellow",
}


def agents(views: Sequence[AgentView]) -> RenderableType:
    table = _table("AGENT", "WHAT", "STATE", "SPOKE", "PRIO", "TRY", "CREATED", "REASON")
    for view in views:
        table.add_row(
            view.id[-SHORT:],
            escape(_what(view)),
            _state(view),
            view.spoke or "-",
            str(view.priority.level),
            str(view.attempt) if view.attempt else "-",
            view.created_at[:19].replace("T", " "),
            escape(_why(view)),
        )
    return table if views else Text("no agents; `felloe ps --all` shows those that ended, too")


def agent(view: AgentView) -> RenderableType:
    lines = [
        ("agent", view.id),
        ("what", _what(view)),
        ("state", f"{view.state}{' (stale)' if view.stale else ''}"),
        ("reason", view.reason),
        ("position", _or_dash(view.position)),
        ("spoke", view.spoke or "-"),
        (
            "generation, attempt",
            f"{view.generation}, {view.attempt} (up to {view.max_retries} retries)",
        ),
        ("priority", f"{view.priority.level} ({view.priority.name})"),
        ("sandbox", view.sandbox.value),
        ("labels", _pairs(view.labels)),
        ("selector", _pairs(view.selector)),
        ("created", view.created_at),
        ("observed", view.observed_at or "-"),
        ("started", view.started_at or "-"),
        ("ended", view.ended_at or "-"),
        ("retry at", view.retry_at or "-"),
        ("deadline", view.deadline or "-"),
        ("exit", _exit(view)),
        ("kill requested", _kill_time(view, "requested_at")),
        ("kill accepted", _kill_time(view, "accepted_at")),
        ("kill confirmed", _kill_time(view, "confirmed_at")),
        ("dead letter", "yes" if view.dead_letter else "no"),
    ]
    return _lines(lines)


def status(view: StatusView) -> RenderableType:
    if not view.live:
        return Group(
            Text(f"no live answer: {view.reason}; what the hub knows:", "yellow"),
            agent(view.agent),
        )
    lines = [
        ("agent", view.agent.id),
        ("at the spoke", view.state if view.known else "not known there"),
        ("attempt", str(view.attempt)),
        ("position", _or_dash(view.position)),
        ("processes", str(view.processes)),
        ("output", f"{view.output_bytes} bytes"),
        ("since", view.since or "-"),
        ("at the hub", f"{view.agent.state}: {view.agent.reason}"),
    ]
    return _lines(lines)


def spokes(views: Sequence[SpokeView]) -> RenderableType:
    table = _table(
        "SPOKE", "STATE", "RUNNING", "QUEUED", "CREDIT", "SANDBOXES", "LABELS", "LACKS", "REASON"
    )
    for view in views:
        table.add_row(
            view.id,
            Text(view.state, "green" if view.state == "online" else "yellow"),
            f"{view.running}/{view.slots}",
            str(view.queued),
            str(view.credit),
            ", ".join(view.sandboxes),
            escape(_pairs(view.labels)),
            escape(", ".join(view.lacks)) or "-",
            escape(view.reason),
        )
    return table if views else Text("no spokes: pin one's public key in the hub's folder of keys")


def queues(view: QueuesView) -> RenderableType:
    table = _table("QUEUE", "PENDING", "ACTIVE", "DELAYED", "COMPLETED", "FAILED", "DEAD", "")
    for queue in (*view.spokes, view.total):
        table.add_row(*_queue(queue), style="bold" if queue.spoke is None else None)
    return table


def types(views: Sequence[AgentType]) -> RenderableType:
    table = _table("TYPE", "COMMAND", "SANDBOX", "PRIO", "RETRIES", "TIMEOUT", "DESCRIPTION")
    for view in views:
        table.add_row(
            view.name,
            escape(_short(" ".join(view.command), 48)),
            view.sandbox.value if view.sandbox else "-",
            _or_dash(view.priority),
            _or_dash(view.max_retries),
            f"{view.timeout_s:g} s" if view.timeout_s else "-",
            escape(view.description),
        )
    return table if views else Text("no agent types; `felloe types put FILE` adds some")


def dead_letter_results(view: DeadLetterResults) -> RenderableType:
    lines = [f"{r.agent}: {'done' if r.done else r.reason}" for r in view.results]
    return Text("\n".join([*lines, f"{view.done} done, {view.left} dead letters left"]))


def event(view: EventView) -> str:
    """One line."""
    where = f" at {view.spoke}" if view.spoke else ""
    why = f": {view.reason}" if view.reason else ""
    return f"{view.at}  {view.agent[-SHORT:]}  {view.kind}{where} ({view.generation}.{view.attempt}){why}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _lines(pairs: Sequence[tuple[str, str]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, escape(value))
    return table


def _queue(view: QueueView) -> list[str]:
    counts = view.counts
    figures = (
        counts.pending,
        counts.active,
        counts.delayed,
        counts.completed,
        counts.failed,
        view.dead_letters,
    )
    return [
        view.spoke or "all",
        *(str(figure) for figure in figures),
        "paused" if view.paused else "",
    ]


def _what(view: AgentView) -> str:
    return view.type or _short(" ".join(view.command), 32) or view.sandbox.value


def _state(view: AgentView) -> Text:
    return Text(f"{view.state}{'?' if view.stale else ''}", _COLOURS.get(view.state, ""))


def _why(view: AgentView) -> str:
    kill = _kill(view)
    return kill if view.kill is not None and view.kill.confirmed_at is None else view.reason


def _exit(view: AgentView) -> str:
    end = view.exit
    if end is None:
        return "-"
    number = (
        ""
        if end.code is None and end.signal is None
        else f" {end.code if end.code is not None else end.signal}"
    )
    return f"{end.kind}{number}{f': {end.detail}' if end.detail else ''}"


def _kill(view: AgentView) -> str:
    kill = view.kill
    if kill is None:
        return "-"
    if kill.confirmed_at is not None:
        return f"confirmed {kill.confirmed_at}"
    return (
        f"accepted {kill.accepted_at}"
        if kill.accepted_at is not None
        else f"requested {kill.requested_at}"
    )


def _kill_time(
    view: AgentView, which: Literal["requested_at", "accepted_at", "confirmed_at"]
) -> str:
    return _or_dash(None if view.kill is None else getattr(view.kill, which))


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "-"


def _or_dash(value: float | str | None) -> str:
    return "-" if value is None else str(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
