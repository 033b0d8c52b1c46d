"""One run of a task's body, which is aborted when a test says so."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from unittest.mock import patch
from uuid import uuid4

from celery import _state, states
from celery.app.trace import task_has_custom

from aioabort.generics import GenericTask, P, R, R_co
from aioabort.records import Outcome
from aioabort.task import AbortableTask
from aioabort.testing.token import ControlledToken
from aioabort.worker.finish import AbortHonoured
from aioabort.worker.token import OUTSIDE, AbortToken, current, lend

T = TypeVar("T")


@contextmanager
def abortable_run(task: GenericTask[P, R]) -> Generator["AbortableRun[P, R]"]:
    """Prepare one run of *task* here, without a broker, a worker or a database.

    Within the block, ``current_token()`` is the run's: functions that a task calls can
    be tested without it. Raises TypeError if *task* is no AbortableTask.
    """
    # What @app.task and @shared_task return may be a proxy.
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

    ``outcome`` is what a worker would have recorded: ``aborted``, ``returned`` or
    ``too_late``, and None if nobody asked it to stop. ``value`` is what it returned,
    ``checks`` how often it looked, up to the look that found the abort, and ``states``
    what it stored by ``update_state()``: pairs of a state and its meta.
    """

    value: R_co | None
    outcome: Outcome | None
    seen: bool
    checks: int
    states: tuple[tuple[str, Any], ...]

    @property
    def aborted(self) -> bool:
        """Whether it ended by the abort; False if it saw it and returned a value."""
        return self.outcome == "aborted"


class AbortableRun(Generic[P, R]):
    """A run that is to begin: say when it is aborted, then call it."""

    def __init__(self, task: AbortableTask[..., Any]) -> None:
        self._task: Any = task
        self._token = ControlledToken(str(uuid4()))
        self._last_item: int | None = None
        self._request: dict[str, str | None] = {}

    @property
    def token(self) -> AbortToken:
        """What ``current_token()`` returns to the body."""
        return self._token

    def abort(
        self, *, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Abort the run now: one that was not called yet never enters its body.

        A fake that the body calls may do so, or another thread.
        """
        self._token.ask(reason, requested_by)

    def abort_after(
        self, *, checks: int, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Let the body look *checks* times in vain, and find the abort the next time."""
        if checks < 0:
            raise ValueError(f"checks must be 0 or more, not {checks}")
        self._token.ask_after(checks, reason, requested_by)

    def abort_at(
        self, *, item: int, reason: str | None = None, requested_by: str | None = None
    ) -> None:
        """Abort the run when ``until_aborted()`` hands over item number *item*.

        The first is number 1. The body has that item to work on, and gets no other.
        """
        if item < 1:
            raise ValueError(f"item must be 1 or more, not {item}")
        self._last_item = item
        self._request = {"reason": reason, "requested_by": requested_by}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Ended[R]:
        """Run the body as a worker does, and a coroutine on the loop for such tasks.

        Raises what the body raises, its own abort excepted. Blocks until the end, so
        a test that is a coroutine itself calls ``await asyncio.to_thread(run, ...)``.
        """
        if self._token.is_started:
            raise RuntimeError("This run has begun: prepare another for a second one")
        if self._token.request is None:
            # The look before the body is the worker's.
            self._token.checks -= 1
        reported = Reported()
        with self._as_in_a_worker(reported, args, kwargs):
            has_call = task_has_custom(self._task, "__call__")
            body = self._task if has_call else self._task.run
            value, state = None, ""
            with suppress(AbortHonoured):
                value, state = body(*args, **kwargs), states.SUCCESS
        self._token.end(state or states.IGNORED)
        return Ended(
            value=value,
            outcome=self._token.outcome if self._token.request is not None else None,
            seen=self._token.seen,
            checks=self._token.checks,
            states=tuple(reported.states),
        )

    @contextmanager
    def _as_in_a_worker(
        self, reported: "Reported", args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Generator[None]:
        task = self._task
        replaced: dict[str, Any] = {
            "_backend": reported,
            # Not a part of the body, and Celery's to call if it ends by itself.
            "after_return": _ignore,
            "signature_from_request": partial(_unsent, task.signature_from_request),
            "until_aborted": partial(self._until_aborted, task.until_aborted),
            "update_state": partial(self._update_state, task.update_state),
        }
        with ExitStack() as stack:
            for name, value in replaced.items():
                stack.enter_context(patch.object(task, name, value))
            # Again, as this may be another thread than the block's.
            stack.callback(current.reset, current.set(self._token))
            lend(self._token)
            stack.callback(lend, OUTSIDE)
            running: Any = vars(_state)["_task_stack"]
            running.push(task)
            stack.callback(running.pop)
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

    def _update_state(
        self, original: Callable[..., None], *args: Any, **kwargs: Any
    ) -> None:
        # So that it does not count as a look of the body's.
        with self._token.lock:
            original(*args, **kwargs)


class Reported:
    """Stands in for the backend: takes what the body stores, and nothing else."""

    def __init__(self) -> None:
        self.states: list[tuple[str, Any]] = []

    def store_result(
        self, _task_id: str, result: object, state: str, **_: object
    ) -> None:
        """Remember it."""
        self.states.append((state, result))

    def mark_as_failure(self, *_: object, **_options: object) -> None:
        """Store nothing: how it ends is the run's to tell."""


def _ignore(*_: object) -> None:
    """Do nothing."""


def _unsent(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the signature of another try, which goes to no broker."""
    signature = original(*args, **kwargs)
    signature.apply_async = lambda: None
    return signature
