"""The audit: how each single request ended, and how late it was seen."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.support.databases import query

from .items import Item
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
    "killed": {"REVOKED"},
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
    outcomes: Counter[str] = field(default_factory=Counter)
    #: A line for each request that was lost, and each wait that did not end.
    losses: list[str] = field(default_factory=list)
    #: Seconds from the end of the fault to the moment when a task saw a request that
    #: was made before.
    longest_after: float = 0.0
    #: Seconds from each request that was made after the fault to that moment.
    delays: list[float] = field(default_factory=list)
    #: The longest time from the end of a body, or from that of the fault, until the wait
    #: for the task had ended, in seconds.
    longest_wait: float = 0.0
    #: Seconds from each call of ``abort()`` until it had returned.
    aborts: list[float] = field(default_factory=list)
    seconds: float = 0.0
    #: The ids of tasks whose message the broker has lost.
    undelivered: list[str] = field(default_factory=list)
    #: What the sender had to try again, and how often.
    troubles: dict[str, int] = field(default_factory=dict)

    @property
    def longest_delay(self) -> float:
        """The longest delay of a request that was made after the fault."""
        return max(self.delays, default=0.0)


@dataclass(frozen=True)
class Case:
    """One task: what its sender, PostgreSQL and its own diary say of it."""

    item: Item
    page: Page
    status: str | None
    outcome: str | None
    has_request: bool
    #: From when on nothing was in the way of the request.
    visible: float
    #: When the fault was over.
    healed: float

    def problem(
        self, bound: float, *, loses_results: bool, is_final: bool
    ) -> str | None:
        """Return what is wrong with it, if anything is."""
        return (
            self._of_waits()
            or (self._of_finals() if is_final else None)
            or self._of_request(loses_results=loses_results)
            or self._of_looks(bound)
        )

    def _of_waits(self) -> str | None:
        if self.item.receipt is None:
            return "abort() did not return"
        if self.item.ending is None:
            return "the wait did not end"
        if not self.item.is_asked and self.status != self.item.receipt.state:
            return f"a finished task was {self.item.receipt.state}"
        return None

    def _of_finals(self) -> str | None:
        ending = str(self.item.ending)
        for what, status in {"value": "SUCCESS", "error": "FAILURE"}.items():
            if ending.startswith(what) and self.status != status:
                return "LOST: what a wait returned was replaced"
        return None

    def _of_request(self, *, loses_results: bool) -> str | None:
        if not self.item.is_asked:
            return None
        if not self.has_request:
            return "LOST: no row"
        if self.outcome is None:
            return "LOST: never settled"
        if self.item.grace is not None and self.outcome in {"returned", "unkillable"}:
            return "LOST: not killed"
        # A task that is ignored stores no result.
        is_stored = not loses_results and self.item.ending != "ResultMissing"
        if is_stored and self.status not in STATES[self.outcome]:
            return "status and outcome do not agree"
        return None

    def _of_looks(self, bound: float) -> str | None:
        if not self.item.is_asked:
            return None
        in_vain = max(self.page.in_vain, default=0) - self.visible
        if in_vain > bound:
            return f"LOST: a check {in_vain:.3f} s later saw nothing"
        begun = max(self.page.begun, default=0) - self.visible
        if begun > bound:
            return f"LOST: the body began {begun:.3f} s later"
        return None

    @property
    def is_undelivered(self) -> bool:
        """Whether every message that workers got has led to a run, but one is missing."""
        was_tried_only = self.item.kind == "retrying" and not any(
            (*self.page.in_vain, *self.page.saw)
        )
        return self.page.received == len(self.page.saw) and (
            not self.page.received or was_tried_only
        )

    @property
    def delay(self) -> float:
        """How long the request took to be seen; 0 if no body has seen it."""
        saw = max(self.page.saw, default=0)
        return saw and saw - max(self.visible, *self.page.begun)

    @property
    def wait(self) -> float:
        """How long the wait went on after the body; 0 if the body did not end itself."""
        ended = max(self.page.ended, default=0)
        return ended and self.item.awaited - max(ended, self.healed)


def audit(
    items: Iterable[Item],
    pages: Mapping[str, Page],
    dsn: str,
    fault: Fault,
    bound: float,
    *,
    states: Mapping[str, str] | None = None,
    is_final: bool = False,
    loses_results: bool = False,
    loses_messages: bool = False,
) -> Audit:
    """Return the verdicts on *items*; checks may see nothing for *bound* seconds.

    *states*: those of another result backend. *is_final*: no later run replaces what a
    wait has returned. *loses_results*: Celery may have, so that its row tells
    nothing. *loses_messages*: the broker may have, so that no worker ran the task that
    settles the request.
    """
    items = list(items)
    rows = {
        task_id: row
        for task_id, *row in query(dsn, ROWS, [item.task_id for item in items])
    }
    result = Audit(fault, tasks=len(items))
    for item in items:
        page = pages.get(item.task_id) or Page()
        visible = max(item.committed, fault.over)
        status, outcome, has_request = rows[item.task_id]
        if states is not None:
            status = states[item.task_id]
        case = Case(
            *(item, page, status, outcome or item.outcome, has_request, visible),
            healed=fault.over,
        )
        result.longest_wait = max(result.longest_wait, case.wait)
        result.aborts.append(item.committed - item.asked)
        if item.is_asked:
            _count(result, case)
        if loses_messages and case.outcome is None and case.is_undelivered:
            result.undelivered.append(item.task_id)
        elif problem := case.problem(
            bound, loses_results=loses_results, is_final=is_final
        ):
            result.losses.append(f"{problem}: {case}")
    return result


def _count(result: Audit, case: Case) -> None:
    result.requests += 1
    result.outcomes[str(case.outcome)] += 1
    if case.item.committed < result.fault.over:
        result.longest_after = max(result.longest_after, case.delay)
    elif case.delay:
        result.delays.append(case.delay)
