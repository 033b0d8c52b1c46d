"""Tasks that tell how they end, and the parts of workflows."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Task, chain, signals
from marks import note, until, wait_for

from aioabort import AbortableTask
from aioabort.signals import task_aborted


class Telling(AbortableTask):
    """Notes which of Celery's handlers are called."""

    abstract = True

    def on_failure(self, exc: Exception, *handed: Any) -> None:
        """Tell of a failure."""
        _, args, *_ = handed
        note(args[0], "on_failure", exc)

    def after_return(self, status: str, retval: Any, *handed: Any) -> None:
        """Tell of the end."""
        _, args, *_ = handed
        note(args[0], "after_return", f"{status} {retval}")


@signals.task_failure.connect
def tell_of_failure(sender: Task, args: Any, exception: Exception, **_: object) -> None:
    """Tell of a failure, as Sentry is told of it."""
    if isinstance(sender, Telling):
        note(args[0], "task_failure", exception)


@signals.task_postrun.connect
def tell_of_postrun(sender: Task, args: Any, state: str, **_: object) -> None:
    """Tell of the end."""
    if isinstance(sender, Telling):
        note(args[0], "task_postrun", state)


@task_aborted.connect
def tell_of_abort(
    sender: Task, task_id: str, request: Any, outcome: str, **_: object
) -> None:
    """Tell of the end of a task that was asked to stop."""
    if isinstance(sender, Telling):
        place = sender.request.args[0]
        facts = (task_id, request.task_id, request.reason, request.requested_by)
        note(place, "task_aborted", " ".join((sender.name, *facts, outcome)))


def define(task: Callable[..., Any]) -> SimpleNamespace:  # noqa: C901
    """Return the tasks of this module for the app whose decorator *task* is."""

    @task(bind=True)
    def stopping(self: AbortableTask, place: str, name: str) -> None:
        """Stop by the exception."""
        note(place, name)
        until(self.raise_if_aborted)

    @task
    def passing(place: str, name: str) -> str:
        """Return at once."""
        note(place, name)
        return name

    @task
    def gated(place: str, name: str) -> str:
        """Return when the test says so."""
        note(place, name)
        wait_for(place, "end")
        return name

    @task(bind=True)
    def replacing(self: AbortableTask, place: str) -> None:
        """Hand the id over to the second of two other tasks."""
        raise self.replace(chain(gated.si(place, "x"), passing.si(place, "y")))

    @task(bind=True)
    def spawning(self: AbortableTask, place: str) -> None:
        """Send a task, tell of its id, and stop by the exception."""
        note(place, "child", gated.delay(place, "x").id)
        until(self.raise_if_aborted)

    @task(bind=True, base=Telling)
    def telling(self: AbortableTask, place: str, ending: str = "") -> str:
        """Stop in one of the three ways."""
        note(place, "body")
        until(self.is_aborted)
        if ending == "failed":
            raise ValueError("stopped in the middle")
        if ending != "returned":
            self.raise_if_aborted()
        return "stopped"

    @task(bind=True, throws=(Exception,))
    def throwing(self: AbortableTask, place: str) -> None:
        """Stop by an exception of those that are expected."""
        note(place, "body")
        until(self.raise_if_aborted)

    @task(bind=True)
    def reporting(self: AbortableTask, place: str) -> None:
        """Report progress after the abort was seen."""
        note(place, "body")
        until(self.is_aborted)
        self.update_state(state="PROGRESS", meta={"at": 1})
        note(place, "reported")
        wait_for(place, "end")
        self.raise_if_aborted()

    @task(base=Task)
    def hear(
        _request: object, error: Exception, _traceback: object, *, place: str
    ) -> None:
        """Be told of an error: called where it happened."""
        note(place, "heard", error)

    @task(base=Task)
    def hear_id(task_id: str, *, place: str) -> None:
        """Be told of an error: sent as a task."""
        note(place, "heard of", task_id)

    return SimpleNamespace(
        stopping=stopping,
        passing=passing,
        gated=gated,
        replacing=replacing,
        spawning=spawning,
        telling=telling,
        throwing=throwing,
        reporting=reporting,
        hear=hear,
        hear_id=hear_id,
    )
