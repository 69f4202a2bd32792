"""The meter around the whole application: requests by method, route template and status, and how long they took.

Labelled by template and never by path, which would be as many labels as there are agents. A stream is timed to its
first byte: how long somebody watched says nothing about the hub.
"""

import asyncio
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from hub.control.metrics import Metrics

# What no route answered to: one label for all of it, since the path is the caller's invention.
_NO_ROUTE = "none"


class Meter:
    """Counts what passes; an ASGI application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], clock() - start)
            await send(message)

        await self._app(scope, receive, noting)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(scope.get("path_template") or _NO_ROUTE)
        method = _NO_ROUTE if route == _NO_ROUTE else str(scope.get("method"))
        key = (method, route, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self._metrics.requests.labels(method, route, str(status)),
                self._metrics.request_seconds.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)
