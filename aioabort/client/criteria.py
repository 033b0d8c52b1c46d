"""The criteria by which ``abort_where()`` finds tasks."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured

from aioabort.client.validation import check_text
from aioabort.exceptions import InvalidRequest, ResultsElsewhere
from aioabort.poller import BATCH_SIZE
from aioabort.postgres.request_store import RequestStore


def check_criteria(
    *,
    task: "str | Task[..., Any] | None",
    worker: str | None,
    queue: str | None,
    before: Any,
) -> dict[str, Any]:
    """Return the criteria that are not None.

    Raises InvalidRequest if all are None or one is malformed.
    """
    names = {
        "task": task.name if isinstance(task, Task) else task,
        "worker": worker,
        "queue": queue,
    }
    for criterion, name in names.items():
        check_text(criterion, name)
    if before is not None and (
        not isinstance(before, datetime) or before.tzinfo is None
    ):
        raise InvalidRequest(f"before is a datetime with a time zone, not {before!r}")
    given = {**names, "before": before}
    criteria = {name: value for name, value in given.items() if value is not None}
    if not criteria:
        raise InvalidRequest(
            "Without a criterion, all tasks would be aborted: give at least one of "
            f"{', '.join(given)}"
        )
    return criteria


async def find_unfinished(
    app: Celery, store: RequestStore, criteria: dict[str, Any]
) -> AsyncIterator[list[str]]:
    """Yield the ids of the unfinished tasks that meet *criteria*, 1,000 at a time."""
    if not store.has_results:
        raise ResultsElsewhere(
            "Only results in PostgreSQL can be searched, and this app stores its "
            "results elsewhere: name the tasks by their ids"
        )
    for criterion in criteria.keys() - store.tables.dialect.criteria.keys():
        raise InvalidRequest(
            f"{criterion} is no criterion with this result backend, which does not "
            "store it"
        )
    # Checked after the place of the results: elsewhere, this setting would not help.
    if criteria.keys() != {"before"} and not app.conf.result_extended:
        raise ImproperlyConfigured(
            "To find tasks by task, worker or queue, set result_extended = True: "
            "without it, Celery does not store these"
        )
    after = ""
    while task_ids := await store.find_unfinished(criteria, after, BATCH_SIZE):
        yield task_ids
        after = task_ids[-1]
