"""The figures that aioabort must reach, beside the figures that were measured."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import ge, le

from . import source_waiting, waiting
from .figures import amount
from .peers import contrib, ours
from .records import Records, Series


@dataclass(frozen=True)
class Target:
    """A figure, and its bound."""

    text: str
    bound: float
    unit: str
    #: Raises LookupError if it was not measured.
    figure: Callable[[Records], float]
    meets: Callable[[float, float], bool] = le

    def row(self, records: Records) -> tuple[str, str, str, str]:
        """Return the requirement, its bound, the figure, and whether it is met."""
        sign = "≤" if self.meets is le else "≥"
        bound = f"{sign} {amount(self.bound, self.unit)}"
        try:
            figure = self.figure(records)
        except LookupError:
            return self.text, bound, "-", "not measured"
        verdict = "met" if self.meets(figure, self.bound) else "missed"
        return self.text, bound, amount(figure, self.unit), verdict


def _found(
    records: Records, subject: str, measure: str, contender: str, **case: int | str
) -> Series:
    series = records.find(subject, measure, contender, **case)
    if series is None:
        raise LookupError(measure)
    return series


def _crowd(records: Records, measure: str, contender: str = ours.NOTIFIED) -> Series:
    case = {"waiters": waiting.CROWD, "rate": waiting.FAST}
    return _found(records, waiting.SUBJECT, measure, contender, **case)


def _source(
    source: str, measure: str, waiters: int = waiting.CROWD, rate: int = waiting.FAST
) -> Callable[[Records], Series]:
    case = {"source": source, "waiters": waiters, "rate": rate}
    return lambda records: _found(
        records, source_waiting.SUBJECT, measure, ours.NOTIFIED, **case
    )


def _memory(records: Records) -> float:
    return _found(
        *(records, waiting.SUBJECT, "memory of a waiter", ours.NOTIFIED),
        waiters=waiting.CROWD,
    ).p50


def _watchers(records: Records) -> float:
    one, many = (
        _found(
            *(records, waiting.SUBJECT, "queries of watchers", ours.NOTIFIED),
            watchers=count,
        ).p50
        for count in waiting.WATCHERS
    )
    return many / one


def _abort(records: Records, contender: str = ours.NOTIFIED, ids: int = 1) -> float:
    return _found(records, "requesting", "abort()", contender, ids=ids).p50


def _times_faster(contender: str) -> Callable[[Records], float]:
    return lambda records: _abort(records, contender) / _abort(records)


def _stop(pool: str, body: str) -> Callable[[Records], Series]:
    case = {"pool": pool, "body": body}
    return lambda records: _found(
        *(records, "stopping", "abort to stop", ours.NOTIFIED), **case
    )


def _median(find: Callable[[Records], Series]) -> Callable[[Records], float]:
    return lambda records: find(records).p50


def _p99(find: Callable[[Records], Series]) -> Callable[[Records], float]:
    return lambda records: find(records).p99


def _last(find: Callable[[Records], Series]) -> Callable[[Records], float]:
    return lambda records: find(records).longest


def _of_source(source: str) -> tuple[Target, ...]:
    """Return the targets of results that are not in Celery's own tables."""
    crowd, resumed = f"{source}, 10,000 waiters: ", "commit to resumed"
    alone = _source(source, resumed, source_waiting.ALONE, waiting.SLOW)
    return (
        Target(f"{source}, one waiter: {resumed}, p50", 0.005, "s", _median(alone)),
        Target(f"{crowd}{resumed}, p50", 0.015, "s", _median(_source(source, resumed))),
        Target(f"{crowd}{resumed}, p99", 0.05, "s", _p99(_source(source, resumed))),
        Target(
            f"{crowd}longest stall of the loop",
            *(0.03, "s", _median(_source(source, "longest stall"))),
        ),
        Target(f"{crowd}connections", 2, "", _last(_source(source, "connections"))),
    )


CROWD = "10,000 waiters, 1,000 tasks end a second: "

TARGETS = (
    Target(
        f"{CROWD}commit to coroutine resumed, p50",
        *(0.015, "s"),
        lambda records: _crowd(records, "commit to resumed").p50,
    ),
    Target(
        f"{CROWD}commit to coroutine resumed, p99",
        *(0.05, "s"),
        lambda records: _crowd(records, "commit to resumed").p99,
    ),
    Target(
        f"{CROWD}by polling alone, p50",
        *(0.25, "s"),
        lambda records: _crowd(records, "commit to resumed", ours.POLLED).p50,
    ),
    Target(
        f"{CROWD}longest stall of the loop",
        *(0.03, "s"),
        lambda records: _crowd(records, "longest stall").p50,
    ),
    Target(
        f"{CROWD}connections",
        *(2, ""),
        lambda records: _crowd(records, "connections").longest,
    ),
    Target("memory of a waiter", 3_000, "B", _memory),
    Target(
        "queries for 1,000 watchers of one task, vs one watcher", 1.2, "x", _watchers
    ),
    Target(
        "abort() from a web process: round trips",
        *(2, ""),
        lambda records: (
            _found(records, "requesting", "round trips of an abort", ours.NOTIFIED).p50
        ),
    ),
    Target(
        "abort() is faster than celery.contrib.abortable, pooled engine",
        *(5, "x", _times_faster(contrib.POOLED), ge),
    ),
    Target(
        "abort() is faster than celery.contrib.abortable, default engine",
        *(15, "x", _times_faster(contrib.DEFAULT), ge),
    ),
    Target(
        "abort() of 10,000 ids", 1, "s", lambda records: _abort(records, ids=10_000)
    ),
    Target(
        "abort() to CancelledError inside a coroutine, prefork, p50",
        *(0.005, "s", _median(_stop("prefork", ours.BODIES["coroutine"]))),
    ),
    Target(
        "abort() to TaskAborted inside time.sleep(60), prefork, p50",
        *(0.01, "s", _median(_stop("prefork", ours.BODIES["sleep"]))),
    ),
    Target(
        "abort() to the end of token.wait(), prefork, p50",
        *(0.005, "s", _median(_stop("prefork", ours.BODIES["wait"]))),
    ),
    Target(
        "500 coroutines in one process, one bulk request: the last one stops",
        *(1, "s", _last(_stop("threads", ours.BODIES["crowd"]))),
    ),
    *_of_source("redis"),
    *_of_source("django-db"),
)
