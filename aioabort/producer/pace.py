"""How often a client polls: never more slowly than it promises, and mostly faster.

The promise is ``aioabort_poll_interval`` without notifications, and five times as much
with them. Most who wait do so for short tasks, and few pay for the many polls of a
young wait; a poll of very many ids is its own reason to take it easy.
"""

from aioabort.watcher import SLOWER_WHEN_NOTIFIED, Pace

#: Seconds; a wait is young for so long, without and with notifications.
YOUNG = 2.0
YOUNG_WHEN_NOTIFIED = 10.0

#: Times what a poll takes: the pause before the next one, so that one client does not
#: keep a core of PostgreSQL busy for more than a fifth of the time.
REST = 4.0


def polling(bound: float) -> Pace:
    """Return the pace without notifications: every *bound* seconds at the latest."""

    def pace(age: float, took: float) -> float:
        return min(bound, max(bound / (10 if age < YOUNG else 4), REST * took))

    return pace


def notified(bound: float) -> Pace:
    """Return the pace of a safety net: every five times *bound* at the latest."""
    return lambda age, _took: (
        bound * (2 if age < YOUNG_WHEN_NOTIFIED else SLOWER_WHEN_NOTIFIED)
    )
