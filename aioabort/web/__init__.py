"""Endpoints to abort tasks and to watch them, for every ASGI application.

Needs Starlette: ``pip install aioabort[web]``.
"""

from aioabort.web.access import Action, Authorize, Caller
from aioabort.web.endpoints import routes

__all__ = ["Action", "Authorize", "Caller", "routes"]
