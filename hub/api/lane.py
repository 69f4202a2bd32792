"""The lane of `POST /v1/agents`, past the framework: routing, injection and its layers cost as much as all the rest.

Same token, same reading, same use case, same answers: the litestar route beside it (which describes it, and answers to
other spellings of the path) calls the same `spawn_one`.
"""

from typing import Any, Final

from litestar.types import ASGIApp, Receive, Scope, Send

from hub.api.agents import spawn_one
from hub.api.auth import Bearer
from hub.api.operation import Answer, receive_body
from hub.api.problems import render
from hub.control.hub import Hub

PATH: Final = "/v1/agents"


class SpawnLane:
    """Answers `POST /v1/agents`, hands everything else on; an ASGI application."""

    def __init__(self, app: ASGIApp, hub: Hub, bearer: Bearer) -> None:
        self._app = app
        self._hub = hub
        self._bearer = bearer
        self._limit = hub.settings.http.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        routed: Any = scope
        routed["path_template"] = PATH
        answer = await self._answer(scope, receive)
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            caller = self._bearer.caller(headers)
            body = await receive_body(receive, headers, self._limit)
            return await spawn_one(self._hub, caller, headers, body)
        except Exception as error:  # noqa: BLE001 - every error has its answer
            status, content, lines = render(error, "POST", PATH)
            return Answer(
                status, content, [(n.lower().encode(), v.encode()) for n, v in lines.items()]
            )
