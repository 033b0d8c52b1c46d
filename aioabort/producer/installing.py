"""Results of Celery's own making that can be aborted and awaited like ours."""

from typing import Any, cast

from celery import Celery

from aioabort.producer.result import AbortableAsyncResult


def install(app: Celery) -> None:
    """Have *app* hand out results that can be aborted and awaited.

    That is what ``app.AsyncResult(id)``, ``app.send_task()``, restored groups, children
    and parents then are, of whatever task. To install it twice does no harm.
    """
    if not issubclass(app.AsyncResult, AbortableAsyncResult):
        name = "AsyncResult"  # by which a pickled result finds its class again
        result_class = app.subclass_with_self(
            AbortableAsyncResult, name=name, reverse=name
        )
        cast("Any", app).AsyncResult = result_class
