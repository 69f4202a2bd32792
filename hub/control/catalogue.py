"""The catalogue's file: `[types.<name>]` tables in TOML, each an agent type without its name."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from hub.schemas import AgentType
from shared.errors import ConfigError


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    types: dict[str, dict[str, Any]] = {}


def read_types(path: Path) -> list[AgentType]:
    """Return the types of a catalogue file; raises ConfigError that names the entry."""
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"agent types from {path}: {error}") from None
    try:
        tables = msgspec.convert(found, _File).types
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: only [types.<name>] tables belong here: {error}") from None
    return [_read_type(path, name, body) for name, body in tables.items()]


def _read_type(path: Path, name: str, body: dict[str, Any]) -> AgentType:
    try:
        return msgspec.convert({**body, "name": name}, AgentType)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: [types.{name}]: {error}") from None
