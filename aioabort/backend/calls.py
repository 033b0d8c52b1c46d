"""Where the result backend's calls are carried out: on the process's own agent."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from celery import Celery, signals

from aioabort.settings import Settings
from aioabort.worker.agent import Agent, agent_with
from aioabort.worker.kills import Kills

#: This is the main process of a prefork pool.
_forks = False


@contextmanager
def agent_at(settings: Settings, app: Celery) -> Generator[Agent]:
    """Lend an agent for the time of the block: this process's, if it may have one.

    The main process of a prefork pool forks at any time, so it keeps neither a thread
    nor a connection. It stores a result only for a task whose process cannot.
    """
    if not _forks:
        yield agent_with(settings, app)
        return
    agent = Agent(settings, Kills(app))
    try:
        yield agent
    finally:
        agent.stop()


def _note_pool(instance: Any, **_: object) -> None:
    global _forks  # noqa: PLW0603
    _forks = instance.pool_cls.__module__ == "celery.concurrency.prefork"


def _forget_parent() -> None:
    global _forks  # noqa: PLW0603
    _forks = False


os.register_at_fork(after_in_child=_forget_parent)
signals.celeryd_after_setup.connect(_note_pool, weak=False)
