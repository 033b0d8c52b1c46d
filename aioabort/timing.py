"""Timeouts, gaps and intervals that are not settings, and checks of durations."""

from dataclasses import dataclass, fields
from typing import TypeGuard

from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import InvalidRequest

#: A hundred years, which every timer, and PostgreSQL's intervals and dates, can hold.
LONGEST = 100 * 365 * 86_400.0


def check_timeout(timeout: object) -> float | None:
    """Return how many seconds a call may wait; None if it may wait without end.

    A hundred years and more are no limit. Raises InvalidRequest for anything else than
    a number of seconds or None. A NaN would stop all timers of the event loop.
    """
    if timeout is None:
        return None
    if not _is_number(timeout):
        raise InvalidRequest(
            f"timeout is a number of seconds or None, not {describe(timeout)}"
        )
    seconds: float = timeout
    return seconds if seconds < LONGEST else None


def is_duration(value: object) -> TypeGuard[float]:
    """Whether *value* is a number of seconds from 0 to a hundred years."""
    return _is_number(value) and 0 <= value <= LONGEST


def is_count(value: object) -> TypeGuard[int]:
    """Whether *value* is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def describe(value: object) -> str:
    """Return *value* for an error message; Python prints no int of 5,000 digits."""
    try:
        return repr(value)
    except ValueError:
        return f"a huge {type(value).__name__}"


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == value  # noqa: PLR0124 - a NaN is not


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Timeouts, gaps and intervals in seconds.

    Tests set ``app.conf.aioabort_timing`` to shorter ones. They are not settings: a later
    version may change them.
    """

    # Connections
    connect_timeout: float = 10.0
    #: After it, a server that does not answer counts as unavailable.
    statement_timeout: float = 10.0
    close_timeout: float = 1.0
    #: For how long a statement is repeated while PostgreSQL is busy.
    busy_timeout: float = 10.0
    #: The same for a statement for several tasks, which is run for half of them after
    #: that: one locked row must not hold up all the others.
    batch_patience: float = 0.2
    #: A pool whose connections are all in use for so long counts as unavailable.
    acquire_timeout: float = 30.0
    #: Between two pings of a connection that only listens.
    heartbeat: float = 10.0
    heartbeat_timeout: float = 3.0
    #: For one notification of a probe, which finds out whether notifications arrive.
    probe_timeout: float = 0.7
    #: Between two probes of a pooler that drops notifications.
    probe_interval: float = 300.0

    # Client
    #: Notifications within this time share one query.
    coalesce: float = 0.005
    #: Between two notifications to workers: each delays the commits of other sessions.
    notify_gap: float = 0.005
    #: How long a cancelled wait() with abort_on_cancel may take to abort its task.
    abort_on_cancel_timeout: float = 5.0
    #: From a task's end until its worker has recorded the outcome. After it, the client
    #: derives the outcome from the final state: not every worker records outcomes.
    settle_timeout: float = 5.0
    #: Between two comments in a stream of server-sent events. Proxies close connections
    #: that are silent, often after a minute.
    keep_alive: float = 15.0

    # Worker
    #: For how long a poll is repeated while PostgreSQL is busy, before tasks start
    #: without it.
    poll_patience: float = 1.0
    #: How long a server that does not answer may delay the start of a task. During a
    #: known outage, no start is delayed.
    start_timeout: float = 5.0
    #: How far the clocks of PostgreSQL and of a process that publishes may differ.
    clock_skew: float = 60.0
    #: How long a call from a task may wait for the connection.
    ask_timeout: float = 5.0
    #: Between two reads of the report queue; adds half of it to a waiter's latency.
    report_gap: float = 0.01
    #: A prefork child exits about one second after its last task.
    agent_stop_timeout: float = 0.8
    #: When a kill is so late, another process carries it out.
    kill_overdue: float = 5.0
    #: Until a kill is claimed again, if its request is locked.
    kill_claim_again: float = 1.0
    #: How long a task's body waits at its end while its process is being killed.
    kill_wait: float = 15.0
    #: How long a cancelled coroutine may clean up before it is cancelled again, and how
    #: long a body may go on that has caught its TaskAborted.
    cleanup_timeout: float = 5.0
    #: How long a body may go on if a library has swallowed its TaskAborted.
    interrupt_pause: float = 1.0
    #: After it, a signal whose handler has not run counts as not delivered.
    signal_timeout: float = 0.05
    #: The same after SystemExit: Celery kills a prefork child 0.1 s later.
    exit_cleanup_timeout: float = 0.08
    #: How long a blocking coroutine may delay the end of a prefork child.
    loop_stop_timeout: float = 0.2

    # Trying again
    store_retry_first: float = 0.1
    store_retry_longest: float = 2.0
    #: When the result backend fails for so long, a worker gives up storing a result.
    store_retry_give_up: float = 600.0
    record_retry_first: float = 0.1
    record_retry_longest: float = 5.0
    #: The longest pause of an agent while a lock, say, delays what it records.
    report_retry_longest: float = 1.0
    #: How long unrecorded outcomes may delay the end of the worker.
    record_stop_timeout: float = 0.2

    def __post_init__(self) -> None:
        """Raise ImproperlyConfigured for a field that is no duration."""
        for field in fields(self):
            value: object = getattr(self, field.name)
            if not is_duration(value):
                raise ImproperlyConfigured(
                    f"Timing.{field.name} must be a number of seconds from 0 to "
                    f"{LONGEST:.0f}, not {describe(value)}"
                )
