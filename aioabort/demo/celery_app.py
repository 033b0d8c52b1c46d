"""The Celery app of the demo, for ``celery -A aioabort.demo.celery_app worker``.

The demo passes its settings to the worker in an environment variable.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from celery import Celery, Task, signals
from celery.contrib.abortable import AbortableTask as ContribTask

from aioabort import AbortableTask
from aioabort.demo import tasks
from aioabort.demo.broker import register_scheme
from aioabort.demo.ledger import entry_of

SETTINGS_VARIABLE: Final = "AIOABORT_DEMO_SETTINGS"

AnyTask: TypeAlias = "Task[..., Any]"
Body = Callable[..., Any]

register_scheme()
app: Celery = Celery("aioabort-demo")
app.conf.update(json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")))


def _register(base: type[AnyTask], body: Body, **options: Any) -> AnyTask:
    def run(task: tasks.Abortable, entry: int, *args: Any) -> Any:
        return body(task, entry_of(app.conf.demo_ledger, entry), *args)

    name = f"{base.__module__}.{body.__name__}"
    decorate: Any = app.task(bind=True, base=base, name=name, **options)
    registered: AnyTask = decorate(run)
    return registered


def _record_end(_task: AnyTask, _: Any, _id: str, args: list[Any], __: Any) -> None:
    # Celery calls on_success just after it has committed the result.
    entry_of(app.conf.demo_ledger, args[0]).stopped = time.monotonic()


def _register_all(base: type[AnyTask]) -> dict[str, AnyTask]:
    bodies = (tasks.index, tasks.time_checks, tasks.noop, tasks.spin, tasks.doze)
    registered = {body.__name__: _register(base, body) for body in bodies}
    return registered | {"nap": _register(base, tasks.nap, on_success=_record_end)}


#: The tasks of each library by name.
CONTRIB_TASKS: Final = _register_all(ContribTask)
AIOABORT_TASKS: Final = _register_all(AbortableTask)


@signals.worker_ready.connect
def _touch_ready_file(**_: Any) -> None:
    Path(app.conf.demo_ready).touch()
