"""The project that the workers serve, as a user would write it.

Every task's first argument is a folder, in which it leaves marks for the test that
sent it, and finds the gates that the test opens.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import async_bodies
import backends
import endings
import folder_broker  # noqa: F401 (makes the broker known to kombu)
import interruptions
import library  # noqa: F401 (registers its task)
import pools
import spans  # noqa: F401 (exports them where a test wants to see them)
import ways_to_end
from celery import Celery, Task, current_task, signals
from marks import note, until, wait_for

from aioabort import AbortableTask, current_token
from aioabort.timing import Timing

app = Celery("proj", task_cls="aioabort:AbortableTask")
# Five seconds are long for a test.
app.conf.aioabort_timing = Timing(cleanup_timeout=1.0)
app.conf.update(json.loads(os.environ["AIOABORT_TEST_PROJECT"]))
# Five seconds are long for a test.
app.conf.aioabort_timing = Timing(kill_overdue=2.0)


# The test's process has a copy of this module for each worker; a task that every app
# shares could only come from one of them.
task = partial(app.task, shared=False)

in_pools = pools.define(task)
in_async = async_bodies.define(task)
in_backend = backends.define(task)
in_endings = endings.define(task)
in_interruptions = interruptions.define(task)
in_ways = ways_to_end.define(task)


@signals.task_prerun.connect
def count_runs(args: list[str], **_: object) -> None:
    """Note that a run begins, also one whose body never does."""
    # Celery's own tasks have no place for it.
    if args and Path(args[0]).is_dir():
        note(args[0], "runs")


@task(base=Task)
def plain(place: str) -> None:
    """Run without anything of aioabort's."""
    note(place, "body")


@task(base=Task)
def hold(place: str, number: int) -> None:
    """Occupy one slot of the pool."""
    note(place, f"held-{number}")
    wait_for(place, "release")


@task
def once(place: str) -> str:
    """Show that the body ran."""
    note(place, "body")
    return "done"


@task(track_started=False)
def untracked(place: str) -> None:
    """Show that the body ran, without STARTED in the row before it."""
    note(place, "body")


@task
def gated(place: str) -> str:
    """End when the test says so, without a check."""
    note(place, "body", os.getpid())
    wait_for(place, "end")
    return "done"


@task
def finishing(place: str, ending: str) -> dict[str, str]:
    """End at once, well or badly."""
    note(place, "body")
    if ending == "FAILURE":
        raise ValueError(place)
    return {"place": place}


@task(bind=True, base=AbortableTask)
def returning(self: AbortableTask, place: str) -> str:
    """Stop as celery.contrib.abortable documents it."""
    note(place, "body")
    until(self.is_aborted)
    return "stopped"


@task(bind=True)
def raising(self: AbortableTask, place: str) -> None:
    """Stop by the exception that is made for it."""
    note(place, "body")
    until(self.raise_if_aborted)


@task(bind=True)
def failing(self: AbortableTask, place: str) -> None:
    """Stop by an exception of its own."""
    note(place, "body")
    until(self.is_aborted)
    raise ValueError("stopped in the middle")


@task(bind=True)
def progressing(self: AbortableTask, place: str) -> str:
    """Report progress as fast as the result backend can take it."""
    note(place, "body")

    def reported_and_aborted() -> bool:
        self.update_state(state="PROGRESS", meta={"at": time.time()})
        return self.is_aborted()

    until(reported_and_aborted)
    return "stopped"


@task(bind=True)
def overwriting(self: AbortableTask, place: str) -> str:
    """Have the state overwritten when the test says so, and look only then."""
    note(place, "body")
    wait_for(place, "overwrite")
    # As code does that knows the backend and not the task.
    self.backend.store_result(self.request.id, {"at": 1}, "PROGRESS")
    note(place, "overwritten")
    wait_for(place, "look")
    until(self.is_aborted)
    return "stopped"


@task(bind=True)
def retrying(self: AbortableTask, place: str, countdown: float) -> None:
    """Ask for another attempt, without a check."""
    note(place, "body")
    wait_for(place, "retry")
    raise self.retry(countdown=countdown)


@task(bind=True, autoretry_for=(Exception,), default_retry_delay=0)
def autoretrying(self: AbortableTask, place: str) -> None:
    """Stop by an exception; Celery retries after any."""
    note(place, "body")
    until(self.raise_if_aborted)


@task(acks_late=True, reject_on_worker_lost=True)
def dying(place: str) -> str:
    """Take the whole process along, so that the broker delivers the task again."""
    note(place, "body")
    wait_for(place, "die")
    os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@task(bind=True, acks_late=True, reject_on_worker_lost=True)
def dying_after_the_end(self: AbortableTask, place: str) -> None:
    """Stop, but lose the process before the message is acknowledged."""
    note(place, "body")
    until(self.raise_if_aborted)


@signals.task_postrun.connect
def die_once(sender: Task, args: list[str], **_: object) -> None:
    """Kill the process between the stored result and the acknowledgement."""
    if sender.name == dying_after_the_end.name:
        first = not Path(args[0], "ended").exists()
        note(args[0], "ended")
        if first:
            wait_for(args[0], "die")
            os.kill(os.getpid(), signal.SIGKILL)


@task(bind=True, ignore_result=True)
def ignored_raising(self: AbortableTask, place: str) -> None:
    """Stop by an exception and store nothing."""
    note(place, "body")
    until(self.raise_if_aborted)


@task(bind=True, ignore_result=True)
def ignored_returning(self: AbortableTask, place: str) -> str:
    """Stop by a return and store nothing."""
    note(place, "body")
    until(self.is_aborted)
    return "nobody will know"


@task(bind=True)
def looking(self: AbortableTask, place: str, times: int) -> float:
    """Look for an abort *times* in a row; return the seconds that it took."""
    note(place, "body")
    wait_for(place, "look")
    start = time.perf_counter()
    found = any(self.is_aborted() for _ in range(times))
    took = time.perf_counter() - start
    note(place, "looked", found)
    return took


class ClassBased(AbortableTask):
    """A task written as a class."""

    name = "proj.class_based"

    def run(self, place: str) -> None:
        """Stop by the exception."""
        note(place, "body")
        until(self.raise_if_aborted)


class Polling:
    """A body that knows nothing of Celery."""

    is_aborted: Callable[[], bool]

    def run(self, place: str) -> str:
        """Stop by a return."""
        note(place, "body")
        until(self.is_aborted)
        return "stopped"


class MixedIn(Polling, AbortableTask):
    """A task whose body comes from a mixin."""

    name = "proj.mixed_in"


class Prepared(AbortableTask):
    """A task that works before its body."""

    name = "proj.prepared"

    def before_start(self, _id: str, handed: list[str], _named: object) -> None:
        """Stop by the exception."""
        note(handed[0], "body")
        until(self.raise_if_aborted)

    def run(self, place: str) -> None:
        """Never run."""
        note(place, "context")


class_based = app.register_task(ClassBased())
prepared = app.register_task(Prepared())
mixed_in = app.register_task(MixedIn())


class ContextTask(AbortableTask):
    """Flask's pattern: a ``__call__`` that does not call ``super()``."""

    abstract = True

    def __call__(self, place: str) -> Any:
        """Run the body in the application's context."""
        note(place, "context")
        return self.run(place)


@task(bind=True, base=ContextTask)
def in_context(self: AbortableTask, place: str) -> None:
    """Stop by the exception, inside of the context."""
    note(place, "body")
    until(self.raise_if_aborted)


class WithHandlers(AbortableTask):
    """Handlers that look at the abort, as code for celery.contrib.abortable does."""

    abstract = True

    def on_failure(self, *handed: Any) -> None:
        """Look without an id."""
        _, _, args, *_ = handed
        note(args[0], "on_failure", self.is_aborted())

    def after_return(self, *handed: Any) -> None:
        """Check with an id, and with arguments that are ignored."""
        status, _, task_id, args, *_ = handed
        note(args[0], "after_return", self.is_aborted(task_id=task_id, status=status))


@task(bind=True, base=WithHandlers)
def unchanged(self: AbortableTask, place: str, ending: str) -> str:
    """Look as code for celery.contrib.abortable does."""
    note(place, "body")
    until(lambda: self.is_aborted(task_id=self.request.id))
    if ending == "FAILURE":
        raise ValueError("stopped in the middle")
    return "TASK STOPPED!"


@task
def unbound(place: str) -> None:
    """Stop without ``self``."""
    note(place, "body")
    until(current_task.is_aborted)
    current_token().raise_if_aborted()


@task(bind=True)
def inner(self: AbortableTask, place: str) -> None:
    """Be called by another task, as a function."""
    note(place, "body")
    until(self.is_aborted)
    self.raise_if_aborted()


@task
def outer(place: str) -> None:
    """Call another abortable task as a function."""
    inner(place)


@task(bind=True)
def threaded(self: AbortableTask, place: str) -> str:
    """Have another thread look."""
    note(place, "body")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(until, self.abort_token.is_aborted).result()
    return "stopped"


@task
def relaying(place: str, other_id: str) -> None:
    """Wait for another task, which is no good idea but happens."""
    note(place, "body")
    app.AsyncResult(other_id).get(disable_sync_subtasks=False, interval=0.05)
