"""The application: routes around a hub, and the server that runs them until it is told to stop.

To stop is a sequence: streams end, then the server takes no more and finishes what it began, then the hub ends its
loops. So no answer is cut off, and nobody watches a hub that is half gone.
"""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, Final

import msgspec
import structlog
import uvicorn
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.types import ASGIApp

from hub.api import agents, dead_letters, events, health, logs, queues, spokes, types
from hub.api.auth import Bearer
from hub.api.lane import SpawnLane
from hub.api.meter import Meter
from hub.api.openapi import document
from hub.api.operation import JSON, operation, options_of, reply_bytes
from hub.api.problems import answer_error
from hub.config import HttpGroup, HubSettings
from hub.control.hub import Hub
from shared.errors import ConfigError
from shared.version import VERSION

log = structlog.get_logger()

_HANDLERS: Final = (
    *agents.HANDLERS,
    *spokes.HANDLERS,
    *queues.HANDLERS,
    *types.HANDLERS,
    *dead_letters.HANDLERS,
    *events.HANDLERS,
    *logs.HANDLERS,
    *health.HANDLERS,
)
# Many clients may connect at the same moment, as 500 spokes' operators do after an outage.
_BACKLOG: Final = 2_048
# Longer than clients and proxies keep a connection themselves (60 s is usual), so that it is not us who closes it just
# when the next request is under way.
_KEEP_ALIVE_S: Final = 75


def build(hub: Hub) -> ASGIApp:
    """Return the ASGI application around a hub."""
    bearer = Bearer(hub.settings.http.token)
    return Meter(SpawnLane(routes(hub, bearer), hub, bearer), hub.metrics)


def routes(hub: Hub, bearer: Bearer) -> Litestar:
    """Return the litestar application: every route, described."""
    documents: list[bytes] = []

    @operation("GET", "/v1/openapi.json", gives={200: JSON})
    async def show_document() -> ASGIApp:
        """Describe this API: OpenAPI 3.1."""
        return reply_bytes(documents[0], JSON)

    described = [*_HANDLERS, show_document]
    guarded = Router(
        path="/", route_handlers=[*options_of(described), *described], guards=[bearer.guard]
    )
    open_ = [*options_of(health.OPEN_HANDLERS), *health.OPEN_HANDLERS]
    app = Litestar(
        route_handlers=[guarded, *open_],
        dependencies={"hub": Provide(lambda: hub, sync_to_thread=False)},
        exception_handlers={Exception: answer_error},
        request_max_body_size=hub.settings.http.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
    documents.append(msgspec.json.encode(document(app, VERSION)))
    return app


async def serve(settings: HubSettings, stop: asyncio.Event) -> None:
    """Run a hub until `stop` is set; raises ConfigError where its address cannot be had."""
    async with Hub.open(settings) as hub:
        with _listen(settings.http) as listener:
            server = _server(build(hub), settings)
            running = asyncio.create_task(server.serve([listener]))
            host, port = listener.getsockname()[:2]
            log.info("hub_listens", url=f"http://{host}:{port}", hub=settings.hub.id)
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                hub.stopping.set()
                server.should_exit = True
                await running


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `shared.service` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _server(app: Any, settings: HubSettings) -> _Server:
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        log_level="error",  # what strangers send that is no HTTP is no news
        timeout_keep_alive=_KEEP_ALIVE_S,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(settings.timing.stop_s)),
    )
    return _Server(config)


def _listen(http: HttpGroup) -> socket.socket:
    """Bind the address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    # The protocol is said, since asyncio switches Nagle's algorithm off only where it reads TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((http.host, http.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {http.host}:{http.port} ([http] host, port): {error}"
        ) from None
    listener.setblocking(False)
    return listener
