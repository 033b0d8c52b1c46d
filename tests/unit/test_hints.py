"""What notifications carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioabort.postgres.hints import (
    EVERYTHING,
    decode_hint,
    done_channel,
    encode_hints,
    request_channel,
)
from aioabort.postgres.tables import Tables

PAYLOAD_LIMIT = 8_000


@given(st.lists(st.uuids().map(str), max_size=700))
def test_ids_come_back_in_payloads_that_postgresql_takes(ids: list[str]) -> None:
    """Every id is in one payload, in order, and each payload is short enough."""
    payloads = list(encode_hints(ids))
    assert all(len(payload.encode()) < PAYLOAD_LIMIT for payload in payloads)
    assert [id_ for payload in payloads for id_ in decode_hint(payload) or ()] == ids


@pytest.mark.parametrize("task_id", ["a,b", "é", "\x80", "a\0b", "x" * 8_000])
def test_an_id_that_does_not_fit_the_format_means_everything(task_id: str) -> None:
    """Ids that no payload can name make receivers look at all, and none is lost."""
    payloads = list(encode_hints(["plain", task_id]))
    assert payloads[-1] == EVERYTHING
    assert decode_hint(EVERYTHING) is None


@given(st.text())
def test_no_payload_is_an_error(payload: str) -> None:
    """Whatever somebody sends is ids, or "look at everything"; never an exception."""
    hint = decode_hint(payload)
    assert hint is None or payload == "1:" + ",".join(hint)


@pytest.mark.parametrize("payload", ["", "2:a", "1", "nonsense", "1:*"])
def test_what_is_not_understood_means_everything(payload: str) -> None:
    """A hint of another version costs a look at all rather than losing one."""
    assert decode_hint(payload) is None


def test_channels_tell_apps_with_other_tables_apart() -> None:
    """Two apps in one database listen to each other only if they share tables."""
    tables = [Tables("a"), Tables("b"), Tables("a", "x"), Tables("a", "x.a")]
    channels = {
        channel(t) for t in tables for channel in (done_channel, request_channel)
    }
    assert len(channels) == 2 * len(tables)
    assert all(channel.isidentifier() and len(channel) < 63 for channel in channels)
