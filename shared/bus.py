"""The one door to NATS: core only, since both ends are durable and acknowledge end to end.

What nats-py was seen to do, and what follows here:
- a publish that raised may have been sent, so failure means *unknown*: callers send the same items again;
- publishes while disconnected are buffered: the buffer is kept small and overflow raises `UnavailableError`;
- the default ping finds a half-open link after four minutes: here after a few seconds;
- it stops after 60 reconnects unless told otherwise, and some errors that the server reports (`-ERR`, say of
  credentials that expired) close it for good whatever it was told: here it never stops trying, a closed client is
  followed by a new one with the same subscriptions, and `connect` itself waits for a server that is not there yet,
  so daemons may start in any order;
- while it tries it reports the same error several times a second: here it is logged once;
- exceptions in callbacks only reach `error_cb`: handlers are wrapped, so that one bad message never ends a
  subscription.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from shared.errors import ConfigError, UnavailableError

log = structlog.get_logger()

# (subject, data) → the reply to send, or None for none.
Handler = Callable[[str, bytes], Awaitable[bytes | None]]

_PENDING_BYTES: Final = 1024 * 1024
_RECONNECT_WAIT_S: Final = 0.25
# Handlers of one subscription at work side by side; what comes beyond waits in the client's own bounded queue.
_PARALLEL: Final = 256


class _Subscription(NamedTuple):
    subject: str
    group: str
    call: Callable[[Msg], Awaitable[None]]


class Bus:
    """One supervised connection. Built by `connect`, ended by `close`."""

    def __init__(self, host: str, **options: Any) -> None:
        self._host = host  # for the log: a URL may hold a password
        self._options = options
        self._client = Client()
        self._subscriptions: list[_Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_connect: list[Callable[[], None]] = []
        self._said = ""
        self._closing = False

    @classmethod
    async def connect(
        cls, url: str, *, name: str, user: str, password: str, inbox_prefix: str = "_INBOX"
    ) -> "Bus":
        """Return a bus once the server answers; waits, logging, for as long as it does not. Cancellable.

        Raises ConfigError for something that is no NATS URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"nats", "tls"} or not parts.hostname:
            raise ConfigError("not a NATS URL: it looks like nats://127.0.0.1:4222")
        bus = cls(
            parts.hostname,
            servers=url,
            name=name,
            user=user or None,
            password=password or None,
            inbox_prefix=inbox_prefix.encode(),
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT_S,
            connect_timeout=2,
            ping_interval=2,
            max_outstanding_pings=2,
            pending_size=_PENDING_BYTES,
        )
        await bus._dial()
        return bus

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    def on_connect(self, call: Callable[[], None]) -> None:
        """Have `call` made after every reconnect: what was in flight then is unknown."""
        self._on_connect.append(call)

    async def publish(self, subject: str, data: bytes) -> None:
        """Hand `data` to the connection. Raises UnavailableError if that is certain to have failed."""
        try:
            await self._client.publish(subject, data)
        except nats.errors.Error as error:
            raise UnavailableError(f"NATS: {error}") from error

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:
        """Return the answer to `data`. Raises UnavailableError: whether the request arrived is then unknown."""
        try:
            return (await self._client.request(subject, data, timeout=timeout_s)).data
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"NATS: no answer on {subject}: {error}") from error

    async def listen(
        self, subject: str, handler: Handler, *, group: str = "", parallel: bool = False
    ) -> None:
        """Call `handler` for each message, in order, or side by side if `parallel`; its result is the reply."""
        slots = asyncio.Semaphore(_PARALLEL)

        async def handle(msg: Msg) -> None:
            try:
                reply = await handler(msg.subject, msg.data)
                if reply is not None and msg.reply:
                    await self._client.publish(msg.reply, reply)
            except (nats.errors.Error, UnavailableError) as error:
                log.warning("reply_not_sent", subject=msg.subject, error=str(error))
            except Exception:  # one bad message never ends a subscription
                log.exception("handler_failed", subject=msg.subject)

        async def handle_aside(msg: Msg) -> None:
            await slots.acquire()
            self._own(handle(msg)).add_done_callback(lambda _: slots.release())

        subscription = _Subscription(subject, group, handle_aside if parallel else handle)
        self._subscriptions.append(subscription)
        # A client that is closed already will be followed by one that makes all of them.
        if not self._client.is_closed:
            await self._subscribe(subscription)

    async def flush(self) -> None:
        """Wait until the server has everything published so far. Raises UnavailableError."""
        try:
            await self._client.flush(timeout=2)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"NATS: {error}") from error

    async def close(self) -> None:
        """End the connection and the handlers still at work."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _hang_up(self._client)

    async def _dial(self) -> None:
        """Put a connected client in place, however long that takes: nats-py itself tries again and again."""
        client = Client()
        try:
            await client.connect(
                **self._options,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )
        except BaseException:
            await _hang_up(client)
            raise
        self._client = client

    async def _subscribe(self, subscription: _Subscription) -> None:
        subject, group, call = subscription
        await self._client.subscribe(subject, queue=group, cb=call)

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not self._closing and (self.is_connected or text != self._said):
            self._said = text
            log.warning("nats_error", error=text, host=self._host)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("nats_away", action="waiting for it")

    async def _on_reconnected(self) -> None:
        self._said = ""
        log.info("nats_back")
        for call in self._on_connect:
            try:
                call()
            except Exception:  # it would end nats-py's own task, and with it the reconnecting
                log.exception("on_connect_failed")

    async def _on_closed(self) -> None:
        if not self._closing:
            self._own(self._start_over())

    async def _start_over(self) -> None:
        """Follow a client that closed for good by a new one with the same subscriptions."""
        await self._dial()
        try:
            for subscription in tuple(self._subscriptions):
                await self._subscribe(subscription)
        except nats.errors.Error as error:
            # Closed again meanwhile: `_on_closed` has seen that and starts over in a task of its own.
            log.warning("nats_away", error=str(error))
            return
        await self._on_reconnected()

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _hang_up(client: Client) -> None:
    """Close a client without callbacks: its end is no loss of a connection.

    What it still holds for a server that is away would make nats-py fail in the middle of its own closing, and leave
    the tasks of its subscriptions behind.
    """
    client._closed_cb = client._disconnected_cb = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if not client.is_connected:
        client._pending, client._pending_data_size = [], 0  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    with contextlib.suppress(OSError):
        await client.close()
