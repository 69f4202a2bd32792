"""Settings: defaults < TOML file < environment < `*_FILE`, into one frozen struct with constraints.

A settings struct holds groups (structs) of fields. The field `port` of the group `http` of the hub is `[http] port`
in TOML, `FELLOE_HUB_HTTP_PORT` in the environment, and `FELLOE_HUB_HTTP_PORT_FILE` names a file that holds it (for
secrets: nothing secret needs to be in argv or the environment). Built once in the entry point and handed down.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from shared.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def load(kind: type[T], prefix: str, file: Path | None, environ: Mapping[str, str]) -> T:
    """Return the settings; raises ConfigError that names the setting and where it came from."""
    values = _read_toml(file) if file is not None else {}
    _check_names(kind, values, file)
    for group in msgspec.structs.fields(kind):
        for field in msgspec.structs.fields(group.type):
            name = f"{prefix}_{group.encode_name}_{field.encode_name}".upper()
            text = _from_environment(name, environ)
            if text is not None:
                values.setdefault(group.encode_name, {})[field.encode_name] = _parse(
                    text, field.type
                )
    missing = _missing(kind, prefix, values)
    if missing:
        raise ConfigError(f"missing required field: {'; '.join(missing)}")
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        where = f"{file} or the environment" if file else "the environment"
        raise ConfigError(f"settings from {where} ({prefix}_…): {error}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no settings file at {file}") from None
    except OSError as error:
        raise ConfigError(f"the settings file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _check_names(kind: type[msgspec.Struct], values: dict[str, Any], file: Path | None) -> None:
    groups = {group.encode_name: group.type for group in msgspec.structs.fields(kind)}
    for group, fields in values.items():
        if group not in groups:
            raise ConfigError(f"{file}: no group [{group}]; there are {', '.join(sorted(groups))}")
        if not isinstance(fields, dict):
            raise ConfigError(f"{file}: `{group}` is a group: write [{group}], then its fields")
        known = {field.encode_name for field in msgspec.structs.fields(groups[group])}
        unknown = ", ".join(sorted(cast("set[str]", fields.keys() - known)))
        if unknown:
            has = ", ".join(sorted(known))
            raise ConfigError(f"{file}: [{group}] has no {unknown}; it has {has}")


def _missing(kind: type[msgspec.Struct], prefix: str, values: dict[str, Any]) -> list[str]:
    """Return every required field that no source gave, and how to give it."""
    return [
        f"[{group.encode_name}] {field.encode_name} (or {name}, or {name}_FILE)"
        for group in msgspec.structs.fields(kind)
        for field in msgspec.structs.fields(group.type)
        if field.required and field.encode_name not in values.get(group.encode_name, {})
        for name in [f"{prefix}_{group.encode_name}_{field.encode_name}".upper()]
    ]


def _from_environment(name: str, environ: Mapping[str, str]) -> str | None:
    path = environ.get(f"{name}_FILE")
    if path is None:
        return environ.get(name)
    try:
        return Path(path).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE: {error}") from None


def _parse(text: str, kind: Any) -> Any:
    """Return the text where its field takes text; a list or a table in the environment is JSON."""
    try:
        msgspec.convert(text, kind, strict=False, dec_hook=_to_path)
    except msgspec.ValidationError:
        pass
    else:
        return text
    try:
        return msgspec.json.decode(text) if text.startswith(("{", "[")) else text
    except msgspec.DecodeError:
        return text


def _to_path(kind: type[Any], value: object) -> Path:
    """msgspec's hook for the one type of setting that it does not know."""
    if kind is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    raise ValueError(f"Expected a {'path' if kind is Path else kind.__name__}, got {value!r}")
