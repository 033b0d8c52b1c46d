"""Runs the body of a task in a test, and aborts it where the test says."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from unittest.mock import patch
from uuid import uuid4

from celery import states
from celery.app.trace import task_has_custom

from aioabort.celery_compat import (
    OWN_BACKEND,
    GenericTask,
    P,
    R,
    R_co,
    current_task_set_to,
)
from aioabort.models import Outcome
from aioabort.task import AbortableTask
from aioabort.testing.controlled_token import ControlledToken
from aioabort.timing import describe, is_count
from aioabort.worker.run import Phase
from aioabort.worker.token import OUTSIDE, AbortToken, current, expose_to_threads
from aioabort.worker.workflow import AbortHonoured

T = TypeVar("T")


@contextmanager
def abortable_run(task: GenericTask[P, R]) -> Generator["AbortableRun[P, R]"]:
    """Prepare one run of *task*, without a broker, a worker or a database.

    In the block, ``current_token()`` returns the token of the run, so functions that the
    task calls can be tested alone. Raises TypeError if *task* is no AbortableTask.
    """
    # @app.task and @shared_task may return a proxy.
    actual = task.app.tasks[task.name]
    if not isinstance(actual, AbortableTask):
        raise TypeError(f"{task.name} is no AbortableTask")
    run = AbortableRun[P, R](actual)
    reset = current.set(run.token)
    try:
        yield run
    finally:
        current.reset(reset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Generic[R_co]):
    """How a body ended.

    ``value`` is what the body returned. ``outcome`` is what a worker would have recorded:
    ``aborted``, ``returned`` or ``too_late``, or None if the body was not aborted.
    ``checks`` is the number of its checks, up to the first True. ``states`` are the pairs
    of state and meta that it stored with ``update_state()``.
    """

    value: R_co | None
    outcome: Outcome | None
    seen: bool
    checks: int
    states: tuple[tuple[str, Any], ...]

    @property
    def aborted(self) -> bool:
        """Whether the abort ended the body; False if it returned a value."""
        return self.outcome == "aborted"


class AbortableRun(Generic[P, R]):
    """A run that has not begun: say when it is aborted, then call it."""

    def __init__(self, task: AbortableTask[..., Any]) -> None:
        self._task: Any = task
        self._token = ControlledToken(str(uuid4()))
        self._last_item: int | None = None
        self._request: dict[str, str | None] = {}

    @property
    def token(self) -> AbortToken:
        """The token that ``current_token()`` returns in the body."""
        return self._token

    def abort(
        self, *, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Abort the run now; if it was not called yet, its body never runs.

        A fake that the body calls may call this, or another thread.
        """
        self._token.ask(reason, requested_by)

    def abort_after(
        self, *, checks: int, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Let the first *checks* checks of the body be False, and the next one True."""
        _check_count("checks", checks, 0)
        self._token.ask_after(checks, reason, requested_by)

    def abort_at(
        self, *, item: int, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Abort the run when ``until_aborted()`` yields item number *item*.

        The first item is number 1. The body works on that item, and gets no other one.
        """
        _check_count("item", item, 1)
        self._last_item = item
        self._request = {"reason": reason, "requested_by": requested_by}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Ended[R]:
        """Run the body as a worker does; a coroutine runs on the loop of the tasks.

        Raises the errors of the body, except its own abort. Blocks until the end: a test
        that is a coroutine itself calls ``await asyncio.to_thread(run, ...)``.
        """
        if self._token.phase is not Phase.CREATED:
            raise RuntimeError("This run has begun: prepare another for a second one")
        self._token.mark_watched()
        backend = RecordingBackend()
        with self._as_in_a_worker(backend, args, kwargs):
            has_call = task_has_custom(self._task, "__call__")
            body = self._task if has_call else self._task.run
            value, state = None, ""
            with suppress(AbortHonoured):
                value, state = body(*args, **kwargs), states.SUCCESS
        self._token.mark_ended(state or states.IGNORED)
        return Ended(
            value=value,
            outcome=self._token.outcome if self._token.request is not None else None,
            seen=self._token.seen,
            checks=self._token.checks,
            states=tuple(backend.states),
        )

    @contextmanager
    def _as_in_a_worker(
        self,
        backend: "RecordingBackend",
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Generator[None]:
        task = self._task
        replaced: dict[str, Any] = {
            OWN_BACKEND: backend,
            # It is no part of the body: after a value or an error, Celery calls it.
            "after_return": _do_nothing,
            "signature_from_request": partial(_unsent, task.signature_from_request),
            "until_aborted": partial(self._until_aborted, task.until_aborted),
        }
        with ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(patch.object(task, name, value))
            # Set again: the block may be in another thread.
            stack.callback(current.reset, current.set(self._token))
            expose_to_threads(self._token)
            stack.callback(expose_to_threads, OUTSIDE)
            stack.enter_context(current_task_set_to(task))
            task.push_request(
                id=self._token.task_id, args=args, kwargs=kwargs, called_directly=False
            )
            stack.callback(task.pop_request)
            yield

    def _until_aborted(
        self, original: Callable[[Iterable[T]], Iterator[T]], items: Iterable[T]
    ) -> Iterator[T]:
        for number, item in enumerate(original(items), 1):
            if number == self._last_item:
                self.abort(**self._request)
            yield item


class RecordingBackend:
    """Replaces the result backend: keeps the states that the body stores."""

    def __init__(self) -> None:
        self.states: list[tuple[str, Any]] = []

    def store_result(
        self, _task_id: str, result: object, state: str, **_: object
    ) -> None:
        """Keep *state* and its meta."""
        self.states.append((state, result))

    def store_revoked(self, *_: object) -> bool:
        """Store nothing: ``Ended`` says how the body ended. Returns True, as for success."""
        return True

    def mark_as_failure(self, *_: object, **_options: object) -> None:
        """Do nothing: ``Ended`` says how the body ended."""


def _check_count(name: str, count: object, least: int) -> None:
    # A NaN would never be reached: the test would abort nothing.
    if not is_count(count) or count < least:
        raise ValueError(f"{name} must be {least} or more, not {describe(count)}")


def _do_nothing(*_: object) -> None:
    """Replace a method of the task."""


def _unsent(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the signature of a retry that is not sent to a broker."""
    signature = original(*args, **kwargs)
    signature.apply_async = lambda: None
    return signature
