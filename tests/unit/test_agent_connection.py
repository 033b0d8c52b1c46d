"""When an outage of the agent's connection is over."""

import logging

import pytest
from celery import Celery

from aioabort.exceptions import StoreBusy, StoreUnavailable
from aioabort.settings import read_settings
from aioabort.worker.agent.agent_connection import POLLS, AgentConnection


@pytest.fixture
def connection(app: Celery) -> AgentConnection:
    app.conf.aioabort_dsn = "postgresql://nowhere.invalid/none"
    return AgentConnection(read_settings(app), app)


def test_an_outage_goes_on_until_all_that_failed_has_succeeded(
    connection: AgentConnection, caplog: pytest.LogCaptureFixture
) -> None:
    """On a standby, polls succeed on each new connection, and LISTEN never does.

    LISTEN expected, lost | poll succeeds | a report fails | LISTEN succeeds | report
    """
    caplog.set_level(logging.INFO, "aioabort")
    connection.expect("listening")
    connection._connectivity.lost(StoreUnavailable("PostgreSQL is away: read-only"))
    with connection.proving(POLLS):
        pass
    with pytest.raises(StoreUnavailable), connection.proving("reports"):
        raise StoreUnavailable("PostgreSQL is away: read-only")
    connection.proved("listening")
    assert "answers again" not in caplog.text
    with connection.proving("reports"):
        pass
    assert "answers again" in caplog.text
    assert len(caplog.records) == 2


def test_polls_decide_whether_postgresql_is_away(connection: AgentConnection) -> None:
    """While it is busy, tasks start without waiting for their first poll."""
    assert not connection.is_away
    connection.delayed(StoreBusy("PostgreSQL is busy: locked"))
    assert connection.is_away
    with pytest.raises(StoreBusy):
        connection.raise_trouble()
    with connection.proving(POLLS):
        pass
    assert not connection.is_away
    connection.raise_trouble()


def test_a_busy_report_is_no_outage(connection: AgentConnection) -> None:
    """One locked row does not prove that PostgreSQL is away."""
    with pytest.raises(StoreBusy), connection.proving("reports"):
        raise StoreBusy("PostgreSQL is busy: locked")
    connection._connectivity.lost(StoreUnavailable("PostgreSQL is away"))
    connection.proved(POLLS)
    assert not connection.is_away
