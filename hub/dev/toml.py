"""Writing the little TOML that the stack's settings need: groups of plain values (`tomllib` only reads)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = str | int | float | bool | Path | Sequence["Value"] | Mapping[str, "Value"]


def to_toml(groups: Mapping[str, Mapping[str, Value]]) -> str:
    """Return the groups as TOML tables."""
    return "\n".join(
        "\n".join(
            [f"[{group}]", *(f"{name} = {to_value(value)}" for name, value in fields.items()), ""]
        )
        for group, fields in groups.items()
    )


def to_value(value: Value) -> str:
    """Return one value; a JSON string is a TOML basic string (toml.io, "String") but for DEL and surrogates."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return (
                "{ " + ", ".join(f"{to_value(k)} = {to_value(v)}" for k, v in value.items()) + " }"
            )
        case _:
            return "[" + ", ".join(to_value(item) for item in value) + "]"
