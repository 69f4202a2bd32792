"""The NATS subjects, version 1 of the wire. Nothing else in Felloe spells a subject.

    felloe.v1.<spoke>.cmd            hub → spoke, commands
    felloe.v1.<spoke>.rep            spoke → hub, requests: hello → welcome, events and heartbeats → ack
    felloe.v1.<spoke>.log.<reader>   spoke → one hub process: log chunks, replies to Status and Tail

Hubs listen to `rep` in one queue group. Ids match `shared.ids.NAME_PATTERN`, so they never hold a dot or a wildcard.
"""

from typing import Final

HUB_QUEUE_GROUP: Final = "hub"
ALL_REPORTS: Final = "felloe.v1.*.rep"


def commands(spoke: str) -> str:
    return f"felloe.v1.{spoke}.cmd"


def reports(spoke: str) -> str:
    return f"felloe.v1.{spoke}.rep"


def logs(spoke: str, reader: str) -> str:
    return f"felloe.v1.{spoke}.log.{reader}"


def logs_for(reader: str) -> str:
    """Return what a hub process listens to."""
    return f"felloe.v1.*.log.{reader}"


def spoke_of(subject: str) -> str:
    """Return the spoke that a subject of ours names; raises ValueError for another subject."""
    parts = subject.split(".")
    if len(parts) < 4 or parts[:2] != ["felloe", "v1"]:
        raise ValueError(f"not a Felloe subject: {subject}")
    return parts[2]


def inbox(spoke: str) -> str:
    """Return the inbox prefix that NATS permissions allow this spoke."""
    return f"_INBOX_{spoke}"
