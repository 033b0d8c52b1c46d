"""Where the result backend's calls are carried out: on the process's own agent."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from billiard import process
from celery import Celery

from aioabort.settings import Settings
from aioabort.worker.agent import Agent, agent_with
from aioabort.worker.kills import Kills


@contextmanager
def agent_at(settings: Settings, app: Celery) -> Generator[Agent]:
    """Lend an agent for the time of the block: this process's, if it may have one.

    The main process of a prefork pool forks at any time, so it keeps neither a thread
    nor a connection. It stores a result only for a task whose process cannot.
    """
    if not _forks():
        yield agent_with(settings, app)
        return
    agent = Agent(settings, Kills(app))
    try:
        yield agent
    finally:
        agent.stop()


def _forks() -> bool:
    """Whether this is the main process of a prefork pool."""
    # Celery loads the backend at a time of its own, so no signal tells for sure. To
    # clean up would be to wait for children, which the pool does itself.
    children: Any = process.active_children(_cleanup=lambda: None)
    return any("PoolWorker" in child.name for child in children)
