"""HTTP endpoints that abort and watch tasks, for any ASGI application.

Needs Starlette: ``pip install aioabort[web]``.
"""

from aioabort.web.authorization import Action, Authorize, Caller
from aioabort.web.endpoints import routes

__all__ = ["Action", "Authorize", "Caller", "routes"]
