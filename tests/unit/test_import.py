"""What ``import aioabort`` does to a process that may never use it."""

import subprocess
import sys
from typing import Any

import pytest

#: The standard library, Celery, asyncpg and anyio have hooks of their own.
WATCHED = """
import atexit, concurrent.futures.thread, os, sys, threading
import anyio, asyncpg, celery, celery.app.base, celery.app.task
import celery.backends.base, celery.backends.rpc, celery.canvas, celery.result

registered = []
os.register_at_fork = lambda **hooks: registered.append(hooks)
atexit.register = lambda function, *args, **options: registered.append(function)

import {module}

print(registered)
print(sorted(name for name in sys.modules if name.split(".")[0] in {unwanted}))
print(threading.active_count())
"""

UNWANTED = {"gevent", "opentelemetry", "rich", "sqlalchemy", "starlette"}


def effects(module: str) -> list[str]:
    """Return what the import registers, which unwanted modules it loads, its threads."""
    program = WATCHED.format(module=module, unwanted=UNWANTED)
    command = [sys.executable, "-c", program]
    return subprocess.check_output(command, text=True, timeout=60).splitlines()


@pytest.mark.parametrize("module", ["aioabort", "aioabort.sync"])
def test_import_registers_nothing_and_loads_no_extra(module: str) -> None:
    """Fork hooks and atexit functions wait for the first agent, loop or client."""
    assert effects(module) == ["[]", "[]", "1"]


#: What a child of a fork would otherwise import in a thread, or while another thread of
#: the parent holds the lock of that import.
FORK_SENSITIVE = ("anyio._backends._asyncio", "encodings.idna")


@pytest.mark.parametrize("module", FORK_SENSITIVE)
def test_import_loads_what_a_thread_would_import_to_connect(module: str) -> None:
    """A release of anyio or Python that renames one of them shows here."""
    program = f"import sys, aioabort; print({module!r} in sys.modules)"
    output: Any = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == "True"
