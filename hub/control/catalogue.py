"""The catalogue's file: `[types.<name>]` tables in TOML, each an agent type without its name."""

import tomllib
from pathlib import Path

import msgspec

from hub.schemas import AgentType
from shared.errors import ConfigError


def read_types(path: Path) -> list[AgentType]:
    """Return the types of a catalogue file; raises ConfigError that names the entry."""
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"agent types from {path}: {error}") from None
    tables = found.pop("types", {})
    if found or not isinstance(tables, dict):
        raise ConfigError(f"{path}: only [types.<name>] tables belong here")
    kinds: list[AgentType] = []
    for name, body in tables.items():
        try:
            kinds.append(msgspec.convert({"name": name, **body}, AgentType))
        except (msgspec.ValidationError, TypeError) as error:
            raise ConfigError(f"{path}: [types.{name}]: {error}") from None
    return kinds
