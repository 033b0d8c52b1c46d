"""How errors are caught, shown and serialized."""

import builtins
import pickle

import celery.exceptions
import pytest

import aioabort
from aioabort import TaskAborted, WaitTimeout


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (TaskAborted(), "The task was aborted"),
        (TaskAborted("no disk"), "The task was aborted: no disk"),
        (TaskAborted(None, "al", "id"), "Task 'id' was aborted by al"),
        (TaskAborted("why", "al", "id"), "Task 'id' was aborted by al: why"),
    ],
)
def test_an_abort_tells_what_is_known(error: TaskAborted, sentence: str) -> None:
    """The message is one sentence, also without a reason or a name."""
    assert str(error) == sentence


def test_an_abort_survives_serialization() -> None:
    """Celery rebuilds an exception from its class and its args; pickle likewise."""
    error = TaskAborted("why", "alice", "id")
    for copy in (TaskAborted(*error.args), pickle.loads(pickle.dumps(error))):
        assert (copy.reason, copy.requested_by, copy.task_id) == ("why", "alice", "id")


def test_an_abort_is_caught_as_a_revoked_task() -> None:
    """Code written for ``revoke()`` needs no change."""
    assert issubclass(TaskAborted, celery.exceptions.TaskRevokedError)


def test_a_timeout_is_caught_by_both_names() -> None:
    """Python's TimeoutError and Celery's are not the same class."""
    error = WaitTimeout("id", 0.5, "away")
    assert isinstance(error, builtins.TimeoutError)
    assert isinstance(error, celery.exceptions.TimeoutError)
    assert "'id' did not end within 0.5 s" in str(error)
    assert "away" in str(error)


def test_a_timeout_survives_pickle() -> None:
    """A task that waits for another one may fail with it, and Celery pickles that."""
    error = pickle.loads(pickle.dumps(WaitTimeout("id", 0.5, "away")))
    assert str(error) == str(WaitTimeout("id", 0.5, "away"))
    assert (error.task_id, error.timeout) == ("id", 0.5)


def test_all_errors_have_one_root() -> None:
    """``except AioabortError`` catches everything that the package raises."""
    errors = [
        value
        for name in aioabort.__all__
        if isinstance(value := getattr(aioabort, name), type)
        and issubclass(value, Exception)
    ]
    assert len(errors) > 5
    assert all(issubclass(error, aioabort.AioabortError) for error in errors)
