"""Which tasks are meant when no ids are at hand: by what Celery's table says of them."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import InvalidRequest, ResultsElsewhere
from aioabort.postgres.store import Store
from aioabort.producer.canvas import Part
from aioabort.producer.limits import check_text
from aioabort.watcher import BATCH


def criteria_of(
    app: Celery,
    *,
    task: "str | Task[..., Any] | None",
    worker: str | None,
    queue: str | None,
    before: Any,
) -> dict[str, Any]:
    """Return the criteria that are given.

    Raises InvalidRequest if there is none, and ImproperlyConfigured for those by which
    nothing would be found.
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
            "abort_where() needs a criterion, or it would abort everything: "
            f"{', '.join(given)}"
        )
    if criteria.keys() != {"before"} and not app.conf.result_extended:
        raise ImproperlyConfigured(
            "abort_where() needs result_extended=True: without it, Celery does not "
            "store which task, worker and queue a result is of"
        )
    return criteria


async def unfinished(
    store: Store, criteria: dict[str, Any]
) -> AsyncIterator[list[Part]]:
    """Yield the tasks that meet all *criteria* and have not ended, some at a time.

    Raises StoreError if Celery's table does not tell, and ResultsElsewhere if there is
    none.
    """
    if not store.has_results:
        raise ResultsElsewhere(
            "abort_where() looks tasks up in Celery's table, and the app keeps its "
            "results elsewhere"
        )
    after = ""
    while task_ids := await store.unfinished(criteria, after, BATCH):
        yield [Part(task_id) for task_id in task_ids]
        after = task_ids[-1]
