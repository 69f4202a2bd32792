"""The settings that the stack writes for its hub and its spokes, and the site policy it stands for.

The policy of a machine of one's own: sandboxes may be degraded, since an ordinary user has no delegated cgroup (what
is missing is shown), and may run under a daemon that is root if we are. Agents may ask for three folders by name:
`source`, a snapshot of our own sources at /src (a snapshot, since the folder of a checkout may hold the stack's own
keys), and `venv` and `python`, which a Python agent needs to find at their own paths.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from hub.dev import nats, valkey
from hub.dev.plan import Plan
from hub.dev.toml import Value, to_toml, to_value
from shared.keys import write_whole

ROOT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("hub", "spoke", "shared")
_CHECKOUT: Final = ("tests", "docs", "README.md", "CHANGELOG.md", "pyproject.toml")


def write(plan: Plan, *, isolated: bool) -> None:
    """Write all settings files; `isolated` False: this host has no bubblewrap, agents are plain processes."""
    _copy_source(plan.folder / "source")
    _write(plan.settings("nats"), _nats(plan))
    _write(plan.folder / "hub" / "types.toml", _types(plan, isolated=isolated))
    _write(plan.settings("hub"), to_toml(_hub(plan)))
    for spoke in plan.options.spokes:
        _write(plan.settings(spoke), to_toml(_spoke(plan, spoke, isolated=isolated)))


def mounts(plan: Plan) -> dict[str, tuple[Path, str]]:
    """Return the folders that the site offers: name → (where it is, where agents see it)."""
    offered = {"source": (plan.folder / "source", "/src")}
    usr = Path("/usr")
    for name, prefix in (("venv", Path(sys.prefix)), ("python", Path(sys.base_prefix))):
        known = [path for path, _ in offered.values()]
        if not prefix.is_relative_to(usr) and prefix not in known:
            offered[name] = (prefix, str(prefix))
    return offered


def _nats(plan: Plan) -> str:
    facts, spokes = plan.facts, plan.options.spokes
    return nats.settings(
        port=facts.nats_port, log=plan.log("nats-server"), passwords=facts.passwords, spokes=spokes
    )


def _hub(plan: Plan) -> Mapping[str, Mapping[str, Value]]:
    home = plan.folder / "hub"
    return {
        "http": {"host": "127.0.0.1", "port": plan.facts.hub_port, "token": plan.token},
        "database": {"file": home / "hub.db"},
        "keys": {"hub": home / "key", "spokes": home / "spokes"},
        "hub": {"id": "hub", "types": home / "types.toml"},
        "nats": _login(plan, nats.HUB),
        "timing": {"suspect_s": plan.options.suspect_s, "stop_s": 3.0},
        "logs": {"format": "text"},
    }


def _spoke(plan: Plan, spoke: str, *, isolated: bool) -> Mapping[str, Mapping[str, Value]]:
    home, options = plan.folder / spoke, plan.options
    kinds = [
        "bubblewrap" if isolated else "process",
        *(["simulated"] if options.simulated else []),
    ]
    offered = {
        name: {"source": path, "target": target} for name, (path, target) in mounts(plan).items()
    }
    prefetch = {"prefetch": options.prefetch} if options.prefetch is not None else {}
    return {
        "spoke": {
            "name": spoke,
            "state": home / "state",
            "labels": {"site": spoke},
            "slots": options.slots,
            "cap": options.cap,
            **prefetch,
        },
        "keys": {"spoke": home / "key", "hub": plan.folder / "hub" / "key.pub"},
        "nats": _login(plan, spoke),
        "queue": {"url": valkey.url(plan.socket(spoke))},
        "sandbox": {
            "kinds": kinds,
            "mounts": offered,
            "allow_degraded": True,
            "allow_root": os.geteuid() == 0,
        },
        "timing": {"heartbeat_s": options.heartbeat_s, "stop_s": 3.0},
        "logs": {"format": "text"},
    }


def _login(plan: Plan, user: str) -> Mapping[str, Value]:
    return {"url": plan.nats_url, "user": user, "password": plan.facts.passwords[user]}


def _types(plan: Plan, *, isolated: bool) -> str:
    """Return the catalogue, with the paths as agents see them on this host."""
    text = resources.files("hub.dev").joinpath("types.toml").read_text()
    source = "/src" if isolated else str(plan.folder / "source")
    return Template(text).substitute(
        python=to_value(sys.executable),
        agents=f"{source}/hub/dev/agents",
        source=to_value(source),
        sandbox=to_value("bubblewrap" if isolated else "process"),
        mounts=to_value(list(mounts(plan))),
    )


def _copy_source(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    checkout = _CHECKOUT if (ROOT / "pyproject.toml").exists() else ()
    for name in (*_PACKAGES, *checkout):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(
                path, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        elif path.is_file():
            shutil.copy(path, target / name)


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode(), mode=0o600)
