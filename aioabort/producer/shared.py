"""The client of the running loop, for results that were not given one."""

import asyncio
from weakref import WeakKeyDictionary

from celery import Celery

from aioabort.producer.client import AbortClient

_Clients = WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Celery, AbortClient]]
_clients: _Clients = WeakKeyDictionary()


async def client_of_running_loop(app: Celery) -> AbortClient:
    """Return the client that serves *app* on this loop, opened at first use.

    It lives in a task, which whoever runs the loop cancels when the loop ends:
    ``asyncio.run()`` and its like close the connections, too. Raises what
    ``AbortClient.open()`` raises; a later call tries again.
    """
    loop = asyncio.get_running_loop()
    clients = _clients.setdefault(loop, {})
    client = clients.get(app)
    if client is None or client.is_closed:
        client = clients[app] = AbortClient(app)
    await client.open()
    return client
