"""One operation of the API: a handler, and beside it what it takes and gives, from which the OpenAPI document is made.

What arrives is read by msgspec into the request structs of `hub.schemas`, strictly: litestar's own conversion takes
`"5"` for 5. So the document (made from the same structs) and what is accepted cannot drift apart. What a handler
returns is an ASGI answer of bytes: nothing is encoded twice.
"""

import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import msgspec
from litestar import Request, route
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Scope, Send

from hub.api.auth import Caller
from hub.api.problems import MalformedError
from hub.control.hub import Hub

ApiRequest = Request[Any, Caller, Any]
# What handlers are given: the hub, and segments of the path. Said aloud, as litestar 3 will want it.
TheHub = NamedDependency[Hub]
Segment = FromPath[str]
Handler = Callable[..., Awaitable[ASGIApp]]
T = TypeVar("T", bound=msgspec.Struct)
Method = Literal["GET", "POST", "PUT", "DELETE"]
# A struct as JSON, another media type, or nothing at all.
Given = type[msgspec.Struct] | str | None

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
SSE: Final = "text/event-stream"

_encode = msgspec.json.Encoder().encode
# W3C Trace Context, section 3.2: version 00, no all-zero ids.
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What the document says of a handler. `gives` is status → struct, or media type of what is not JSON."""

    method: Method
    path: str
    name: str
    summary: str
    takes: type[msgspec.Struct] | None
    body_optional: bool
    query: type[msgspec.Struct] | None
    headers: tuple[str, ...]
    gives: Mapping[int, tuple[Given, ...]]
    problems: tuple[int, ...]
    open: bool


def operation(
    method: Method,
    path: str,
    *,
    gives: Mapping[int, Given | tuple[Given, ...]],
    takes: type[msgspec.Struct] | None = None,
    body_optional: bool = False,
    query: type[msgspec.Struct] | None = None,
    headers: tuple[str, ...] = (),
    problems: tuple[int, ...] = (),
    is_open: bool = False,
) -> Callable[[Handler], HTTPRouteHandler]:
    """Make a litestar route of a handler, with its description; `is_open` is for routes without a token."""

    def wrap(handler: Handler) -> HTTPRouteHandler:
        described = Operation(
            method=method,
            path=re.sub(r":\w+}", "}", path),
            name=handler.__name__,
            summary=(handler.__doc__ or "").strip(),
            takes=takes,
            body_optional=body_optional,
            query=query,
            headers=headers,
            gives={
                status: kind if isinstance(kind, tuple) else (kind,)
                for status, kind in gives.items()
            },
            problems=problems,
            open=is_open,
        )
        return route(path, http_method=[method], status_code=200, opt={"operation": described})(
            handler
        )

    return wrap


def options_of(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """Return a route per path that answers to OPTIONS with all its methods; to be registered before the others.

    litestar's own names the methods of the first handler that was registered under a path, and no others.
    """
    allowed: dict[str, list[str]] = {}
    for handler in handlers:
        allowed.setdefault(next(iter(handler.paths)), ["OPTIONS"]).extend(handler.http_methods)
    return [_options(path, ", ".join(sorted(methods))) for path, methods in allowed.items()]


def _options(path: str, allow: str) -> HTTPRouteHandler:
    async def answer_options() -> ASGIApp:
        return reply_bytes(b"", "", 204, {"Allow": allow})

    return route(path, http_method=["OPTIONS"], status_code=200)(answer_options)


class Answer:
    """A complete answer, as an ASGI application."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status, self.body, self.headers = status, body, headers

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def reply(view: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with a struct as JSON."""
    return reply_bytes(_encode(view), JSON, status, headers)


def reply_bytes(
    body: bytes, media_type: str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Answer with bytes as they are; 204 has neither a body nor a type."""
    lines = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    if status != 204:
        lines += [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    return Answer(status, body, lines)


async def read_body(request: ApiRequest, kind: type[T], *, optional: bool = False) -> T:
    """Read the body strictly; raises MalformedError. An empty one counts as `{}` where it is optional."""
    body = await receive_body(request.receive, request.headers, request.app.request_max_body_size)
    return decode_body(b"{}" if not body and optional else body, kind)


async def receive_body(receive: Receive, headers: Mapping[str, str], limit: Any) -> bytes:
    """Return a JSON body of at most `limit` bytes; an announced excess is refused before anything is read."""
    media_type = headers.get("content-type", JSON)
    if not media_type.lower().startswith(JSON):
        raise HTTPException(
            status_code=415, detail=f"the body is {JSON} here, not {media_type[:100]}"
        )
    announced = headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > limit:
        raise _too_large(limit)
    body = b""
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(status_code=400, detail="the connection ended before the body did")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return body


def decode_body(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode JSON strictly; raises MalformedError that names the field."""
    try:
        return _decoder(kind).decode(body)
    except msgspec.MsgspecError as error:
        raise MalformedError(error, "body") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(msgspec.DecodeError(str(error)), "body") from None


def read_query(request: ApiRequest, kind: type[T]) -> T:
    """Read what stands behind the `?`; raises MalformedError. Lists are given by repeating the name."""
    lists = _lists(kind)
    found = {
        name: values if name in lists or len(values) > 1 else values[0]
        for name, values in request.query_params.dict().items()
    }
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedError(error, "query") from None


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the caller's `traceparent` if it is one, else a new one, not sampled."""
    given = headers.get("traceparent")
    if given is not None and _TRACEPARENT.fullmatch(given):
        return given
    # Must differ, need not be a secret: a look at the system's randomness costs as much as the whole decoding.
    fresh = f"{random.getrandbits(192) | 1 << 64 | 1:048x}"
    return f"00-{fresh[:32]}-{fresh[32:]}-00"


def wants_events(request: ApiRequest) -> bool:
    """Tell whether the caller asked for SSE."""
    return SSE in request.headers.get("accept", "")


def _too_large(limit: int) -> HTTPException:
    return HTTPException(status_code=413, detail=f"a body has at most {limit} bytes")


@lru_cache(64)
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


@lru_cache(64)
def _lists(kind: type[msgspec.Struct]) -> frozenset[str]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)  # noqa: S101 - `kind` is a struct by its type

    def is_list(found: msgspec.inspect.Type) -> bool:
        inner = found.type if isinstance(found, msgspec.inspect.Metadata) else found
        return isinstance(inner, msgspec.inspect.ListType)

    return frozenset(field.encode_name for field in info.fields if is_list(field.type))
