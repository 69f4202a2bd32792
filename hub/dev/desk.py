"""What a person or a script does at a hub, over HTTP: the demo's and the bench's hands."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, TypeVar

import httpx
import msgspec

from hub.schemas import AgentView, BatchResult, QueuesView, SpokeView, StatusView
from shared.errors import FelloeError
from shared.lifecycle import ENDED

_LOOK_S: Final = 0.05

T = TypeVar("T", bound=msgspec.Struct)


class UnexpectedError(FelloeError):
    """The hub answered something else than it must."""

    code = "unexpected"


class Desk:
    """Calls one hub. Raises UnexpectedError for every answer that is not a success."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def spawn(self, request: dict[str, Any]) -> str:
        """Spawn, and return the agent's id."""
        return (await self._call("POST", "/v1/agents", AgentView, json=request)).id

    async def batch(self, requests: Sequence[dict[str, Any]]) -> BatchResult:
        """Spawn up to 1,000."""
        return await self._call(
            "POST", "/v1/agents/batch", BatchResult, json={"agents": list(requests)}
        )

    async def agent(self, agent: str) -> AgentView:
        return await self._call("GET", f"/v1/agents/{agent}", AgentView)

    async def status(self, agent: str) -> StatusView:
        """Return what the spoke itself says now."""
        return await self._call("GET", f"/v1/agents/{agent}/status", StatusView)

    async def kill(self, agent: str) -> AgentView:
        return await self._call("POST", f"/v1/agents/{agent}/kill", AgentView, json={})

    async def queues(self) -> QueuesView:
        return await self._call("GET", "/v1/queues", QueuesView)

    async def spoke(self, name: str) -> SpokeView:
        return await self._call("GET", f"/v1/spokes/{name}", SpokeView)

    async def until(self, agent: str, *states: str, timeout_s: float = 30.0) -> AgentView:
        """Return the agent as soon as it is in one of the states; raises UnexpectedError when it ends elsewhere."""
        seen = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    seen = await self.agent(agent)
                    if seen.state in states:
                        return seen
                    if seen.state in ENDED:
                        break
                    await asyncio.sleep(_LOOK_S)
        wanted, now = (
            " or ".join(states),
            "unknown" if seen is None else f"{seen.state} ({seen.reason})",
        )
        raise UnexpectedError(f"{agent} is {now} and should be {wanted}")

    async def output(self, agent: str) -> str:
        """Return all output there is."""
        return "".join([f"{line}\n" async for line in self._lines(agent, {})])

    def follow(self, agent: str) -> AsyncGenerator[str, None]:
        """Yield the lines of the output as they come, to the end."""
        return self._lines(agent, {"follow": "true"})

    async def _lines(self, agent: str, params: dict[str, str]) -> AsyncGenerator[str, None]:
        path, headers = f"/v1/agents/{agent}/logs", {"Accept": "text/plain"}
        try:
            async with self._client.stream(
                "GET", path, params=params, headers=headers, timeout=60
            ) as answer:
                if not answer.is_success:
                    raise _unexpected(answer, (await answer.aread()).decode(errors="replace"))
                async for line in answer.aiter_lines():
                    yield line
        except httpx.TransportError as error:
            raise UnexpectedError(f"GET {path}: {error!r}") from error

    async def _call(self, method: str, path: str, kind: type[T], json: object = None) -> T:
        try:
            answer = await self._client.request(method, path, json=json)
        except httpx.TransportError as error:
            raise UnexpectedError(f"{method} {path}: {error!r}") from error
        if not answer.is_success:
            raise _unexpected(answer, answer.text)
        return msgspec.json.decode(answer.content, type=kind)


def _unexpected(answer: httpx.Response, text: str) -> UnexpectedError:
    request = answer.request
    return UnexpectedError(
        f"{request.method} {request.url.path}: {answer.status_code} {text[:500]}"
    )
