"""The OpenAPI 3.1 document, made from the operations and from what msgspec says of their structs.

litestar can make one too, but loses constraints on the way (bounds inside unions, names of keys, unknown fields), so a
client would be promised what is refused. Here both sides come from the same struct. No user interface comes with it:
those load from elsewhere.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from litestar import Litestar

from hub.api.operation import JSON, Operation
from hub.api.problems import MEDIA_TYPE, title_of
from hub.schemas import IdempotencyKey, Problem, SpawnRequest
from shared.ids import Name, Uuid7

_REF: Final = "#/components/schemas/{name}"
_PATH: Final[Mapping[str, Any]] = {"agent_id": Uuid7, "spoke_id": Name, "name": Name}
_HEADERS: Final[Mapping[str, tuple[Any, str]]] = {
    "Idempotency-Key": (
        IdempotencyKey,
        "the same key with the same body is answered with the same agent",
    ),
    "Last-Event-ID": (str, "go on after this `id` of the stream"),
    "traceparent": (str, "W3C Trace Context, carried into everything that follows"),
}
_RESPONSE_HEADERS: Final[Mapping[int, dict[str, Any]]] = {
    202: {"Location": {"description": "the agent", "schema": {"type": "string"}}},
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}},
}


def document(app: Litestar, version: str) -> dict[str, Any]:
    """Return the document for all operations of the app."""
    found = [handler.opt["operation"] for route in app.routes for handler in _handlers(route)]
    operations: list[Operation] = sorted(found, key=lambda each: (each.path, each.method))
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Felloe hub",
            "version": version,
            "summary": "Spawn, watch and certainly stop AI agents at many sites.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _components(operations),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _handlers(route: Any) -> Iterable[Any]:
    return [
        handler for handler in getattr(route, "route_handlers", ()) if "operation" in handler.opt
    ]


def _structs(operations: Iterable[Operation]) -> list[Any]:
    kinds: list[Any] = [Problem, SpawnRequest]
    for each in operations:
        kinds += [each.takes] if each.takes else []
        kinds += [
            kind for given in each.gives.values() for kind in given if isinstance(kind, type)
        ]
    return list(dict.fromkeys(kinds))


def _components(operations: Iterable[Operation]) -> dict[str, Any]:
    return msgspec.json.schema_components(_structs(operations), ref_template=_REF)[1]


def _operation(each: Operation) -> dict[str, Any]:
    summary, _, description = each.summary.partition("\n")
    described: dict[str, Any] = {
        "operationId": each.name,
        "summary": summary.strip().rstrip("."),
        "description": re.sub(r"\s*\n\s*", " ", description).strip(),
        "parameters": [
            *_path_parameters(each),
            *_query_parameters(each),
            *_header_parameters(each),
        ],
        "responses": {**_responses(each), **_problems(each)},
        "security": [] if each.open else [{"token": []}],
    }
    if each.takes is not None:
        content = {JSON: {"schema": {"$ref": _REF.format(name=each.takes.__name__)}}}
        described["requestBody"] = {"required": not each.body_optional, "content": content}
    return described


def _path_parameters(each: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", each.path)
    return [
        {"name": n, "in": "path", "required": True, "schema": msgspec.json.schema(_PATH[n])}
        for n in names
    ]


def _query_parameters(each: Operation) -> list[dict[str, Any]]:
    if each.query is None:
        return []
    _, components = msgspec.json.schema_components([each.query], ref_template="{name}")
    fields = components[each.query.__name__]["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": _parameter_schema(schema, components),
        }
        for name, schema in fields.items()
    ]


def _parameter_schema(schema: Any, components: Mapping[str, Any]) -> Any:
    """Put what is referred to in its place, and leave `null` out: a parameter is given or it is not."""
    match schema:
        case {"$ref": name}:
            return components[name]
        case {"anyOf": [only, {"type": "null"}]}:
            return _parameter_schema(only, components)
        case {"items": items}:
            return {**schema, "items": _parameter_schema(items, components)}
        case _:
            return schema


def _header_parameters(each: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": text,
            "schema": msgspec.json.schema(kind),
        }
        for name, (kind, text) in ((name, _HEADERS[name]) for name in each.headers)
    ]


def _responses(each: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, kinds in each.gives.items():
        content = {
            k if isinstance(k, str) else JSON: {"schema": _schema(k)}
            for k in kinds
            if k is not None
        }
        found[str(status)] = {
            "description": title_of(status),
            **({"content": content} if content else {}),
            **({"headers": _RESPONSE_HEADERS[status]} if status in _RESPONSE_HEADERS else {}),
        }
    return found


def _problems(each: Operation) -> dict[str, Any]:
    statuses = {*each.problems, 500}
    statuses |= set() if each.open else {401}
    statuses |= {400, 413, 415} if each.takes else set()
    statuses |= {400} if each.query or each.path.count("{") else set()
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}}
    return {
        str(status): {
            "description": title_of(status),
            "content": content,
            **({"headers": _RESPONSE_HEADERS[status]} if status in _RESPONSE_HEADERS else {}),
        }
        for status in sorted(statuses)
    }


def _schema(kind: Any) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"type": "object" if kind == JSON else "string"}
    return {"$ref": _REF.format(name=kind.__name__)}
