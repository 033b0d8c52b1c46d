"""asyncio clients for the Redis of Celery's result backend.

redis-py is the user's own dependency: it is imported for a backend that uses it, and
what it returns has no type here.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from ssl import VerifyMode
from typing import Any, Final

from anyio import CancelScope, move_on_after

from aioabort.celery_compat import uses_celerys_redis_client
from aioabort.timing import Timing

#: Parameters of Celery's blocking client that ours must not have: other connection
#: classes, and retries that would hide that a connection was lost.
_LEFT_OUT: Final = {
    "connection_class",
    "decode_responses",
    "health_check_interval",
    "hosts",
    "max_connections",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "socket_timeout",
}


def is_redis(backend: object) -> bool:
    """Whether *backend* reads with the client of Celery's Redis or Sentinel backend.

    A subclass with a client of its own, for a cluster, has parameters of its own, too.
    """
    return uses_celerys_redis_client(type(backend))


class RedisServer:
    """Makes clients with the address and credentials of a Redis or Sentinel backend.

    Raises TypeError if asyncio connections do not know a parameter of the backend.
    """

    def __init__(self, backend: Any, timing: Timing) -> None:
        params: dict[str, Any] = backend.connparams
        self._timing: Final = timing
        self._hosts: Final[list[dict[str, Any]]] = params.get("hosts", [])
        self._options: Final[dict[str, Any]] = (
            backend.app.conf.get("result_backend_transport_options") or {}
        )
        self._kwargs: Final = {
            name: value for name, value in params.items() if name not in _LEFT_OUT
        }
        # Some releases have a timeout by default, which a large value may exceed.
        self._kwargs["socket_timeout"] = None
        self._kwargs["socket_connect_timeout"] = min(
            params.get("socket_connect_timeout") or timing.connect_timeout,
            timing.connect_timeout,
        )
        checked = params.get("ssl_cert_reqs")
        if isinstance(checked, VerifyMode):
            # What the asyncio connections of all releases understand.
            self._kwargs["ssl_cert_reqs"] = checked.name.removeprefix("CERT_").lower()
        self._connection_class: Final = _connection_class(params)
        #: How long the read of a large value may take.
        self.patience: Final[float] = params.get("socket_timeout") or 120.0
        self._make_client().connection_pool.make_connection()

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Any]:
        """Yield a client, which connects when it is used first; close its connections."""
        client = self._make_client()
        sentinels: list[Any] = []
        manager = getattr(client.connection_pool, "sentinel_manager", None)
        if manager is not None:
            sentinels = manager.sentinels
        try:
            yield client
        finally:
            with CancelScope(shield=True), move_on_after(self._timing.close_timeout):
                for each in (client, *sentinels):
                    await each.connection_pool.disconnect()

    def hide_secrets(self, text: str) -> str:
        """Return *text* without passwords: some releases show them in their errors."""
        sentinel: dict[str, Any] = self._options.get("sentinel_kwargs") or {}
        for kwargs in (self._kwargs, sentinel, *self._hosts):
            if password := kwargs.get("password"):
                text = text.replace(str(password), "***")
        return text

    def _make_client(self) -> Any:
        redis: Any = import_module("redis.asyncio")
        kwargs = dict(self._kwargs)
        if self._connection_class is not None:
            kwargs["connection_class"] = self._connection_class
        if not self._hosts:
            return redis.Redis(connection_pool=redis.ConnectionPool(**kwargs))
        sentinel = redis.Sentinel(
            [(host["host"], host["port"]) for host in self._hosts],
            min_other_sentinels=self._options.get("min_other_sentinels", 0),
            sentinel_kwargs=self._options.get("sentinel_kwargs"),
            **kwargs,
        )
        return sentinel.master_for(self._options.get("master_name", ""))


def _connection_class(params: dict[str, Any]) -> type[Any] | None:
    """Return the asyncio class that does what the backend's blocking class does."""
    redis: Any = import_module("redis")
    connection: Any = import_module("redis.asyncio.connection")
    sentinel: Any = import_module("redis.asyncio.sentinel")
    cls = params.get("connection_class")
    if cls is None:
        return None
    same: type[Any] | None = None
    if issubclass(cls, redis.SSLConnection):
        same = (
            sentinel.SentinelManagedSSLConnection
            if "hosts" in params
            else connection.SSLConnection
        )
    elif issubclass(cls, redis.UnixDomainSocketConnection):
        same = connection.UnixDomainSocketConnection
    return same
