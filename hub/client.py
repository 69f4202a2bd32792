"""The hub's client: the REST API as typed calls, and its streams as iterators that survive a lost connection.

What the hub refuses is raised as the error it means (`shared.errors`), so a caller sees the same errors on both sides
of the wire. A stream that breaks is taken up again after the last `id` that arrived; what the hub says twice then, a
reader that needs to can tell by its position.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from hub.schemas import (
    AgentPage,
    AgentType,
    AgentView,
    BatchRequest,
    BatchResult,
    DeadLetterResults,
    DeadLettersRequest,
    EventPage,
    EventView,
    HealthView,
    KillRequest,
    LogView,
    Problem,
    QueuesView,
    SpawnRequest,
    SpokesView,
    SpokeView,
    StatusView,
    TypesView,
)
from shared.errors import (
    BadInputError,
    ConflictError,
    FelloeError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

T = TypeVar("T")

TIMEOUT_S: Final = 30.0
# The hub writes a comment every 10 s: nothing for this long means that the connection is dead.
_SILENCE_S: Final = 35.0
_RECONNECT_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

_ERRORS: Final[dict[int, type[FelloeError]]] = {
    400: BadInputError,
    401: NotAuthenticatedError,
    403: NotAllowedError,
    404: NotFoundError,
    409: ConflictError,
    413: BadInputError,
    415: BadInputError,
    422: BadInputError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}

_encode = msgspec.json.Encoder().encode


class SseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream, as it came."""

    id: str | None
    kind: str
    data: bytes


class LogEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of output (`log`), or a word about it: `gap`, `absent`, `attempt_end`, `end`."""

    kind: str
    log: LogView


class SseReader:
    """Turns bytes into events (WHATWG HTML, section 9.2.6). Line ends are LF here: it is our hub that writes them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[SseEvent]:
        """Return the events that are complete with `data`; comments are left out."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        events = [_parse_event(block) for block in blocks]
        return [event for event in events if event is not None]


class Client:
    """One hub. Use it as `async with Client(url, token) as hub`. Raises FelloeErrors, UnavailableError among them."""

    def __init__(self, url: str, token: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    # --- agents --------------------------------------------------------------------------------------

    async def spawn(self, request: SpawnRequest, *, key: str | None = None) -> AgentView:
        """Spawn an agent; with the same key and request again: the same agent."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self._call("POST", "/v1/agents", AgentView, body=request, headers=headers)

    async def spawn_batch(
        self, requests: Sequence[SpawnRequest], *, keys: Sequence[str | None] = ()
    ) -> BatchResult:
        """Spawn up to 1,000 agents; results in the same order."""
        items = [msgspec.Raw(_encode(request)) for request in requests]
        body = BatchRequest(agents=items, idempotency_keys=list(keys))
        return await self._call("POST", "/v1/agents/batch", BatchResult, body=body)

    async def agents(
        self,
        *,
        states: Sequence[str] = (),
        spoke: str | None = None,
        type: str | None = None,  # noqa: A002 - as the API calls it
        labels: Mapping[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> AgentPage:
        """Return a page of agents, newest first."""
        labelled = [f"{key}={value}" for key, value in (labels or {}).items()]
        query = {
            "state": list(states),
            "spoke": spoke,
            "type": type,
            "label": labelled,
            "cursor": cursor,
        }
        return await self._call("GET", "/v1/agents", AgentPage, query={**query, "limit": limit})

    async def agent(self, agent: str) -> AgentView:
        return await self._call("GET", f"/v1/agents/{_segment(agent)}", AgentView)

    async def status(self, agent: str) -> StatusView:
        """Return what the agent's spoke itself says now."""
        return await self._call("GET", f"/v1/agents/{_segment(agent)}/status", StatusView)

    async def kill(
        self, agent: str, *, grace_s: float | None = None, reason: str = ""
    ) -> AgentView:
        """Order a kill; `.kill.confirmed_at` of the agent tells when it is done."""
        body = KillRequest(grace_s=grace_s, reason=reason)
        return await self._call("POST", f"/v1/agents/{_segment(agent)}/kill", AgentView, body=body)

    async def release(self, agent: str) -> AgentView:
        return await self._call("POST", f"/v1/agents/{_segment(agent)}/release", AgentView)

    async def remove(self, agent: str) -> AgentView:
        """Drop an agent that has not started; ConflictError if it runs."""
        return await self._call("DELETE", f"/v1/agents/{_segment(agent)}", AgentView)

    # --- streams -------------------------------------------------------------------------------------

    async def logs(
        self, agent: str, *, start: str = "1.1.0", follow: bool = True
    ) -> AsyncGenerator[LogEvent, None]:
        """Yield an agent's output from a position on, up to `end` if it is followed."""
        query = {"from": start, "follow": "true" if follow else "false"}
        path = f"/v1/agents/{_segment(agent)}/logs"
        async for event in self._stream(path, query, goes_on=follow, last="end"):
            yield LogEvent(kind=event.kind, log=_decode(event.data, LogView))

    async def events(
        self, *, agent: str | None = None, after: int | None = None
    ) -> AsyncGenerator[EventView, None]:
        """Yield events as they come, without end: of one agent from its first, of all from now or after `after`."""
        path = "/v1/events" if agent is None else f"/v1/agents/{_segment(agent)}/events"
        async for event in self._stream(path, {"after": after}, goes_on=True, last=None):
            yield _decode(event.data, EventView)

    async def event_page(
        self, *, agent: str | None = None, after: int = 0, limit: int = 100
    ) -> EventPage:
        """Return events after an id, oldest first."""
        path = "/v1/events" if agent is None else f"/v1/agents/{_segment(agent)}/events"
        return await self._call("GET", path, EventPage, query={"after": after, "limit": limit})

    # --- the fleet -----------------------------------------------------------------------------------

    async def spokes(self) -> SpokesView:
        return await self._call("GET", "/v1/spokes", SpokesView)

    async def spoke(self, spoke: str) -> SpokeView:
        return await self._call("GET", f"/v1/spokes/{_segment(spoke)}", SpokeView)

    async def queues(self) -> QueuesView:
        return await self._call("GET", "/v1/queues", QueuesView)

    async def pause(self, spoke: str | None = None) -> QueuesView:
        """Pause one queue, or all."""
        return await self._call(
            "POST", f"/v1/queues{f'/{_segment(spoke)}' if spoke else ''}/pause", QueuesView
        )

    async def resume(self, spoke: str | None = None) -> QueuesView:
        """Resume one queue, or all."""
        return await self._call(
            "POST", f"/v1/queues{f'/{_segment(spoke)}' if spoke else ''}/resume", QueuesView
        )

    async def ready(self) -> HealthView:
        """Return whether the hub can do its work; not ready is an answer here, not an error."""
        answer = await self._send(self._http.build_request("GET", "/readyz"))
        return _decode(answer.content, HealthView)

    # --- types and dead letters ----------------------------------------------------------------------

    async def agent_types(self) -> TypesView:
        return await self._call("GET", "/v1/types", TypesView)

    async def agent_type(self, name: str) -> AgentType:
        return await self._call("GET", f"/v1/types/{_segment(name)}", AgentType)

    async def put_type(self, kind: AgentType) -> AgentType:
        return await self._call("PUT", f"/v1/types/{_segment(kind.name)}", AgentType, body=kind)

    async def delete_type(self, name: str) -> None:
        await self._call("DELETE", f"/v1/types/{_segment(name)}", None)

    async def dead_letters(
        self, *, spoke: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> AgentPage:
        """Return a page of dead letters, newest first."""
        query = {"spoke": spoke, "cursor": cursor, "limit": limit}
        return await self._call("GET", "/v1/dead-letters", AgentPage, query=query)

    async def requeue(self, agents: Sequence[str] = (), *, reason: str = "") -> DeadLetterResults:
        """Send dead letters back: these, or all when none is named."""
        body = DeadLettersRequest(agents=list(agents), all=not agents, reason=reason)
        return await self._call("POST", "/v1/dead-letters/requeue", DeadLetterResults, body=body)

    async def discard(self, agents: Sequence[str] = (), *, reason: str = "") -> DeadLetterResults:
        """Take dead letters off the list: these, or all when none is named."""
        body = DeadLettersRequest(agents=list(agents), all=not agents, reason=reason)
        return await self._call("POST", "/v1/dead-letters/discard", DeadLetterResults, body=body)

    # --- how -----------------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[T] | None,
        *,
        body: msgspec.Struct | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        request = self._http.build_request(
            method,
            path,
            content=None if body is None else _encode(body),
            params=_given(query or {}),
            headers={
                **({"Content-Type": "application/json"} if body is not None else {}),
                **(headers or {}),
            },
        )
        answer = await self._send(request)
        if not answer.is_success:
            raise error_of(answer)
        return _decode(answer.content, kind) if kind is not None else _decode(b"null", Any)

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._http.send(request, stream=stream)
        except httpx.TransportError as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"no answer from the hub at {self.url} ({error or type(error).__name__}): is it running there?"
        )

    async def _stream(
        self, path: str, query: Mapping[str, Any], *, goes_on: bool, last: str | None
    ) -> AsyncGenerator[SseEvent, None]:
        """Yield a stream's events up to the kind `last`, taking it up again where it broke if it `goes_on`."""
        at: str | None = None
        was_there, tries = False, 0
        while True:
            try:
                async for event in self._connection(path, query, at):
                    was_there, tries = True, 0
                    if event is None:
                        continue
                    at = event.id or at
                    yield event
                    if event.kind == last:
                        return
            except UnavailableError:
                # The first time it is the caller's to know; later the hub was there and will be again.
                if not (goes_on and was_there):
                    raise
            if not goes_on:
                return
            await asyncio.sleep(_RECONNECT_S[min(tries, len(_RECONNECT_S) - 1)])
            tries += 1

    async def _connection(
        self, path: str, query: Mapping[str, Any], at: str | None
    ) -> AsyncGenerator[SseEvent | None, None]:
        """Yield the events of one connection, after a None that says that it stands."""
        headers = {"Accept": "text/event-stream", **({} if at is None else {"Last-Event-ID": at})}
        request = self._http.build_request(
            "GET", path, params=_given(query), headers=headers, timeout=httpx.Timeout(_SILENCE_S)
        )
        answer = await self._send(request, stream=True)
        try:
            if not answer.is_success:
                await answer.aread()
                raise error_of(answer)
            yield None
            reader = SseReader()
            async for data in answer.aiter_bytes():
                for event in reader.feed(data):
                    yield event
        except httpx.TransportError as error:
            raise self._away(error) from error
        finally:
            await answer.aclose()


def error_of(answer: httpx.Response) -> FelloeError:
    """Return the error that a refusal means; also for answers that are not from a hub."""
    try:
        problem = msgspec.json.decode(answer.content, type=Problem)
        text, code = problem.detail, problem.code
    except msgspec.MsgspecError:
        text, code = (
            f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}",
            "unexpected",
        )
    if answer.status_code == 429:
        after = answer.headers.get("retry-after", "1")
        return OverloadedError(
            text, retry_after_s=float(after) if after.isdigit() else 1.0, code=code
        )
    return _ERRORS.get(answer.status_code, FelloeError)(text, code=code)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _segment(name: str) -> str:
    """What a person typed stays one segment of the path."""
    return quote(name, safe="")


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise FelloeError(
            f"not an answer of a hub of this version: {error}", code="unexpected"
        ) from None


def _parse_event(block: bytes) -> SseEvent | None:
    fields: dict[bytes, bytes] = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name:
            fields[name] = value.removeprefix(b" ")
    if b"data" not in fields:
        return None
    identity = fields.get(b"id")
    return SseEvent(
        id=None if identity is None else identity.decode(),
        kind=fields.get(b"event", b"message").decode(),
        data=fields[b"data"],
    )
