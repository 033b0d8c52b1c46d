"""The report: faults survived, requests audited, lost, and the longest delay."""

import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

from aioabort.poller import SLOWER_WHEN_NOTIFIED

from .rounds import Arena
from .workers import POLL_INTERVAL

#: One poll interval and a second. Where a notification was lost, a healthy listener
#: polls at its slow pace, which varies by a fifth.
PROMISED = POLL_INTERVAL + 1
PROMISED_UNTOLD = POLL_INTERVAL * SLOWER_WHEN_NOTIFIED * 1.2 + 1

HEADER = f"{'fault':<44}{'tasks':>7}{'asked':>7}{'lost':>6}{'after':>8}{'then':>8}{'waits':>8}{'took':>7}"


def pythons(arena: Arena) -> str:
    """Return the versions of Python that the workers run on, by turns."""
    show = "import platform; print(platform.python_version())"
    command = [arena.place.other_python, "-c", show]
    other = subprocess.check_output(command, text=True).strip()
    return " and ".join(sorted({platform.python_version(), other}))


def report(arena: Arena) -> Iterator[str]:
    """Yield the report's lines."""
    audits = arena.audits
    packages = ("aioabort", "celery", "kombu", "asyncpg")
    yield ", ".join(
        [
            f"Python {pythons(arena)}",
            f"PostgreSQL {arena.programs.version}",
            *(f"{name} {version(name)}" for name in packages),
        ]
    )
    yield HEADER
    outcomes: Counter[str] = Counter()
    for audit in audits:
        outcomes.update(audit.outcomes)
        yield (
            f"{audit.fault.name:<44}{audit.tasks:>7}{audit.requests:>7}"
            f"{len(audit.losses):>6}{audit.longest_after:>7.2f}s"
            f"{audit.longest_delay:>7.2f}s{audit.longest_wait:>7.2f}s"
            f"{audit.seconds:>6.1f}s"
        )
    requests = sum(audit.requests for audit in audits)
    lost = sum(len(audit.losses) for audit in audits)
    survived = sum(not audit.losses for audit in audits)
    after = max((audit.longest_after for audit in audits), default=0)
    yield "after: the longest delay once the fault was over; then: of later requests;"
    yield "waits: the longest one once the body and the fault had ended"
    yield (
        f"{survived} of {len(audits)} faults survived, {requests:,} requests audited, "
        f"{lost} lost, longest delay after recovery {after:.2f} s "
        f"(promised: {PROMISED:g} s, {PROMISED_UNTOLD:g} s without notifications)"
    )
    yield "outcomes: " + ", ".join(
        f"{count:,} {outcome}" for outcome, count in outcomes.most_common()
    )
    if undelivered := sum(len(audit.undelivered) for audit in audits):
        yield f"undelivered: {undelivered} messages that the broker has lost"
    yield from arena.notes
    yield "left behind: " + ("; ".join(arena.leaks) or "nothing")
