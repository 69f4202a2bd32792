"""The settings of the embedded nats-server: one account, and a user for each who may speak, with its subjects only.

    hub       publishes commands, answers requests, hears every report
    <spoke>   publishes its own reports and logs, hears its own commands and the answers to its own requests
    tap       only where the plan asks for it: hears everything and can put commands on the wire, for the demo's attack

(One account per spoke comes with the issue on trust.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hub.dev.toml import to_value
from shared import subjects

HUB: Final = "hub"
TAP: Final = "tap"
# An envelope has at most 256 KiB; the rest is for whoever sends larger ones to be told so by us, not by NATS.
_MAX_PAYLOAD: Final = 512 * 1024


def settings(*, port: int, log: Path, passwords: Mapping[str, str], spokes: Sequence[str]) -> str:
    """Return the configuration file's text. `passwords` names the users: hub, tap if wanted, and each spoke."""
    users = "\n".join(_user(name, password, spokes) for name, password in passwords.items())
    return f"""
host: "127.0.0.1"
port: {port}
max_payload: {_MAX_PAYLOAD}
log_file: {to_value(log)}
logtime: true
logtime_utc: true
authorization {{
  users = [
{users}
  ]
}}
"""


def _user(name: str, password: str, spokes: Sequence[str]) -> str:
    publish, subscribe = _subjects(name, spokes)
    return (
        f"    {{ user: {to_value(name)}, password: {to_value(password)}, permissions: {{"
        f" publish: {{ allow: {to_value(publish)} }}, subscribe: {{ allow: {to_value(subscribe)} }} }} }}"
    )


def _subjects(name: str, spokes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what this user may publish and what it may subscribe to."""
    trust, changed = "felloe.v1.trust", "felloe.v1.hub.changed"
    if name == HUB:
        # A wildcard stands for a whole token, so the spokes' inboxes are named one by one.
        inboxes = [f"{subjects.inbox(spoke)}.>" for spoke in spokes]
        publish = [subjects.commands("*"), trust, changed, *inboxes]
        return publish, [
            subjects.ALL_REPORTS,
            subjects.logs("*", ">"),
            changed,
            f"{subjects.inbox(HUB)}.>",
        ]
    if name == TAP:
        return [subjects.commands("*")], ["felloe.v1.>", "_INBOX.>"]
    publish = [subjects.reports(name), subjects.logs(name, ">")]
    return publish, [subjects.commands(name), trust, f"{subjects.inbox(name)}.>"]
