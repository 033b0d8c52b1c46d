"""The audit: what became of each single request, and how late it was seen."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .load import Item
from .postgres import query
from .workers import Page

ROWS = """
    SELECT ids.task_id, t.status, r.outcome, r.requested_at IS NOT NULL
    FROM unnest(%s::text[]) AS ids (task_id)
    LEFT JOIN celery_taskmeta AS t ON t.task_id = ids.task_id
    LEFT JOIN aioabort_request AS r ON r.task_id = ids.task_id
"""

#: What Celery's row says beside each outcome, if the result was stored at all.
STATES = {
    "aborted": {"REVOKED"},
    "returned": {"SUCCESS"},
    # REVOKED: the broker delivered it again, Celery wrote STARTED over FAILURE, and the
    # second run was stopped before its body.
    "failed": {"FAILURE", "REVOKED"},
    "killed": {"REVOKED", "FAILURE"},
    "unkillable": {"SUCCESS", "FAILURE", "REVOKED"},
    "too_late": {"SUCCESS", "FAILURE", "REVOKED"},
}


@dataclass(frozen=True)
class Fault:
    """From when to when something was wrong."""

    name: str
    begun: float
    over: float


@dataclass
class Audit:
    """What is to be reported of one round."""

    fault: Fault
    tasks: int = 0
    requests: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    #: A line for each request that was lost, and each wait that did not end.
    losses: list[str] = field(default_factory=list)
    #: Seconds from the end of the fault to the moment when a task saw a request that
    #: was made before.
    longest_after: float = 0.0
    #: Seconds from a request that was made after the fault to that moment.
    longest_delay: float = 0.0
    seconds: float = 0.0
    #: What the sender had to try again, and how often.
    troubles: dict[str, int] = field(default_factory=dict)


def audit(
    items: Iterable[Item], pages: dict[str, Page], dsn: str, fault: Fault, bound: float
) -> Audit:
    """Return what became of *items*; a look may be in vain for *bound* seconds."""
    items = list(items)
    rows = {
        task_id: row
        for task_id, *row in query(dsn, ROWS, [item.task_id for item in items])
    }
    result = Audit(fault, tasks=len(items))
    for item in items:
        page = pages.get(item.task_id) or Page()
        status, outcome, has_request = rows[item.task_id]
        if item.is_asked:
            result.requests += 1
            result.outcomes[str(outcome)] = result.outcomes.get(str(outcome), 0) + 1
            _measure(result, item, page)
        problem = _problem(item, page, status, outcome, has_request, fault, bound)
        if problem:
            result.losses.append(
                f"{item.task_id} {item.kind}: {problem} (status {status}, outcome "
                f"{outcome}, receipt {item.receipt and item.receipt.answer}, wait "
                f"{item.ending}, committed {item.committed - fault.over:+.3f}, "
                f"{page})"
            )
    return result


def _problem(
    item: Item,
    page: Page,
    status: str | None,
    outcome: str | None,
    has_request: Any,
    fault: Fault,
    bound: float,
) -> str | None:
    if item.receipt is None:
        return "abort() did not return"
    if item.ending is None:
        return "the wait did not end"
    if not item.is_asked:
        finished = item.receipt.state
        return None if status == finished else f"a finished task was {finished}"
    if not has_request:
        return "LOST: no row"
    if outcome is None:
        return "LOST: never settled"
    if status not in STATES[outcome]:
        return "status and outcome do not agree"
    visible = _visible(item, fault) + bound
    looked = max(page.in_vain, default=0)
    if looked > visible:
        return f"LOST: looked in vain {looked - visible + bound:.3f} s later"
    begun = max(page.begun, default=0)
    if begun > visible:
        return f"LOST: the body began {begun - visible + bound:.3f} s later"
    return None


def _visible(item: Item, fault: Fault) -> float:
    """Return the moment from which nothing was in the way of the request."""
    return max(item.committed, fault.over)


def _measure(result: Audit, item: Item, page: Page) -> None:
    if not (saw := max(page.saw, default=0)):
        return
    delay = saw - max(_visible(item, result.fault), max(page.begun))
    if item.committed < result.fault.over:
        result.longest_after = max(result.longest_after, delay)
    else:
        result.longest_delay = max(result.longest_delay, delay)
