"""The door to Valkey or Redis: connect, check its settings, and run scripts so that nothing is left half done.

- A command that was sent may have had its effect even if the caller was cancelled or the answer lost: calls are
  shielded from cancellation and owned here until they end, and a failure means *unknown*. redis-py's own retries are
  off, since it would send the same call again without anybody knowing.
- The server may have restarted and forgotten its scripts: NOSCRIPT comes before any effect, so the source is sent.
- Settings under which accepted agents could vanish are refused at the start, not found out at the first power cut.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, cast

import structlog
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import ConfigError, FencedError, UnavailableError
from spoke.queue.scripts import Script

log = structlog.get_logger()

_WAIT_S: Final = 0.25
# Long, since a disk under load stalls `appendfsync always`, and a time-out makes the effect unknown.
_ANSWER_S: Final = 10.0
_CONNECT_S: Final = 2.0
_CONNECTIONS: Final = 8
# `flags=` in scripts and several settings in one CONFIG GET came with Redis 7.0; Valkey's first own floor is 7.2.
_VALKEY_FLOOR: Final = (7, 2)
_REDIS_FLOOR: Final = (7, 0)

_Away = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)


class Server:
    """One pool of connections to one server. Built by `open`, ended by `close`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._calls: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, url: str, *, allow_volatile: bool) -> "Server":
        """Return once the server answers; waits, logging, until then. Raises ConfigError for one we cannot trust."""
        server = cls(_client(url))
        try:
            await server._wait_until_there(_without_password(url))
            check_version(await server.info("server"))
            await server._check_settings(allow_volatile)
        except BaseException:
            await server.close()
            raise
        return server

    async def run(self, script: Script, key: str, args: list[Any]) -> list[Any]:
        """Run a script once, whatever becomes of the caller. Raises FencedError, UnavailableError."""
        return await self._shielded(self._run(script, key, args))

    async def info(self, section: str) -> Mapping[str, Any]:
        """Return a section of INFO. Raises UnavailableError."""
        return await self._shielded(self._client.info(section))

    async def close(self) -> None:
        """Wait for what is under way, then disconnect."""
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._client.aclose()

    async def _run(self, script: Script, key: str, args: list[Any]) -> list[Any]:
        try:
            result = await cast("Any", self._client.evalsha(script.sha1, 1, key, *args))
        except exceptions.NoScriptError:
            result = await cast("Any", self._client.eval(script.source, 1, key, *args))
        return result

    async def _shielded(self, call: Any) -> Any:
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except _Away as error:
            raise UnavailableError(f"Valkey: {error or type(error).__name__}") from error
        except exceptions.ResponseError as error:
            raise _translate(error) from error

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that one whose caller was cancelled is not reported as lost

    async def _wait_until_there(self, url: str) -> None:
        said = ""
        while True:
            try:
                await self._client.ping()
            except exceptions.ResponseError as error:
                raise ConfigError(f"queue.url: {url} refuses us: {error}") from error
            except _Away as error:
                if _is_login(error):
                    raise ConfigError(f"queue.url: {url} does not let us in: {error}") from error
                if said != (said := str(error) or type(error).__name__):
                    log.warning("valkey_away", url=url, error=said, action="waiting for it")
                await asyncio.sleep(_WAIT_S)
            else:
                return

    async def _check_settings(self, allow_volatile: bool) -> None:
        try:
            names = ("maxmemory-policy", "appendonly", "appendfsync")
            found = await cast("Any", self._client.config_get(*names))
        except exceptions.ResponseError as error:
            if allow_volatile:
                log.warning("valkey_settings_unknown", error=str(error))
                return
            raise ConfigError(
                f"Valkey does not tell its settings ({error}); set queue.allow_volatile to go on without knowing"
            ) from error
        for line in check_settings(found, allow_volatile=allow_volatile):
            log.warning("valkey_volatile", risk=line)


def check_version(info: Mapping[str, Any]) -> None:
    """Raise ConfigError for a server older than Valkey 7.2 or Redis 7.0."""
    is_valkey = "valkey_version" in info
    name, floor = ("Valkey", _VALKEY_FLOOR) if is_valkey else ("Redis", _REDIS_FLOOR)
    version = str(info["valkey_version" if is_valkey else "redis_version"])
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < floor:
        raise ConfigError(f"{name} {version} is too old: {'.'.join(map(str, floor))} is the floor")


def check_settings(found: Mapping[str, str], *, allow_volatile: bool) -> list[str]:
    """Return what could be lost and is allowed to be; raises ConfigError for what must not be."""
    if found.get("maxmemory-policy") != "noeviction":
        raise ConfigError(
            f"Valkey would evict accepted agents: set maxmemory-policy noeviction, not {found.get('maxmemory-policy')}"
        )
    risks = [
        f"{name} is {found.get(name)}, not {wanted}: a power cut loses accepted agents"
        for name, wanted in (("appendonly", "yes"), ("appendfsync", "always"))
        if found.get(name) != wanted
    ]
    if risks and not allow_volatile:
        raise ConfigError(f"{'; '.join(risks)}. Set it, or queue.allow_volatile")
    return risks


def _client(url: str) -> Redis:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_ANSWER_S,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_CONNECT_S,
        )
    except ValueError as error:
        raise ConfigError(f"queue.url: {error}") from None
    return Redis.from_pool(pool)


def _is_login(error: BaseException) -> bool:
    """redis-py raises a refused login as such, or as the cause of a connection that failed."""
    logins = (exceptions.AuthenticationError, exceptions.AuthorizationError)
    return isinstance(error, logins) or isinstance(error.__cause__, logins)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _translate(error: exceptions.RedisError) -> FencedError | UnavailableError:
    """FENCED is ours; the others (OOM, MISCONF, LOADING, READONLY) say that the server cannot serve now."""
    text = str(error)
    if text.startswith("FENCED"):
        return FencedError(text.removeprefix("FENCED").strip())
    return UnavailableError(f"Valkey: {text}")
