"""The payloads of notifications."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioabort.postgres.notifications import (
    EVERYTHING,
    decode_notification,
    done_channel,
    encode_notifications,
    request_channel,
)
from aioabort.postgres.tables import Tables

PAYLOAD_LIMIT = 8_000


@given(st.lists(st.uuids().map(str), max_size=700))
def test_ids_come_back_in_payloads_that_postgresql_takes(ids: list[str]) -> None:
    """Every id is in one payload, in order, and each payload is short enough."""
    payloads = list(encode_notifications(ids))
    assert all(len(payload.encode()) < PAYLOAD_LIMIT for payload in payloads)
    assert [
        id_ for payload in payloads for id_ in decode_notification(payload) or ()
    ] == ids


@pytest.mark.parametrize("task_id", ["a,b", "é", "\x80", "a\0b", "x" * 8_000])
def test_an_id_that_does_not_fit_the_format_means_everything(task_id: str) -> None:
    """For an id that fits no payload, receivers query all their tasks."""
    payloads = list(encode_notifications(["plain", task_id]))
    assert payloads[-1] == EVERYTHING
    assert decode_notification(EVERYTHING) is None


@given(st.text())
def test_no_payload_is_an_error(payload: str) -> None:
    """Any payload means some ids or all tasks; none raises an exception."""
    task_ids = decode_notification(payload)
    assert task_ids is None or payload == "1:" + ",".join(task_ids)


@pytest.mark.parametrize("payload", ["", "2:a", "1", "nonsense", "1:*"])
def test_what_is_not_understood_means_everything(payload: str) -> None:
    """For a payload of another version, receivers query all their tasks."""
    assert decode_notification(payload) is None


def test_channels_tell_apps_with_other_tables_apart() -> None:
    """Two apps in one database notify each other only if they share tables."""
    tables = [Tables("a"), Tables("b"), Tables("a", "x"), Tables("a", "x.a")]
    channels = {
        channel(t) for t in tables for channel in (done_channel, request_channel)
    }
    assert len(channels) == 2 * len(tables)
    assert all(channel.isidentifier() and len(channel) < 63 for channel in channels)
