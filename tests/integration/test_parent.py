"""What the worker's main process records, in a thread beside those that it forks."""

import sys
from collections.abc import Callable

from anyio import run_process

from aioabort import AbortClient

RECORD = """
import sys
from celery import Celery
from celery.app.task import Context
from aioabort import AbortableTask
from aioabort.worker import parent

app = Celery("main", broker="memory://", backend=sys.argv[1])

@app.task(base=AbortableTask)
def task(): ...

task.backend.mark_as_revoked("killed", "terminated")  # as Celery has done by then
before = set(sys.modules)
parent.record_end(parent.End(task, Context(id="killed"), "killed"))
recording = parent._recording
assert recording is None or recording.wait(30)
print(sorted(sys.modules.keys() - before))
"""


async def test_recording_imports_nothing(
    client: AbortClient, dsn: str, celery_url: Callable[[str], str]
) -> None:
    """A child that is forked at any moment can do what the thread was doing.

    Closes: the thread imports a module for the first time | fork | the child's agent
    needs the module, and waits for the lock of an import that nobody will end
    """
    await client.abort("killed")
    command = [sys.executable, "-c", RECORD, celery_url(dsn)]
    done = await run_process(command, stderr=None)

    assert done.stdout == b"[]\n"
    request = (await client.snapshot("killed")).request
    assert request is not None
    assert request.outcome == "killed"
