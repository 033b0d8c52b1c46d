"""Whatever is sent, named or configured: an answer or one clear error, and no stall."""

from urllib.parse import quote

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import strategies as st

from aioabort.client.validation import check_grace, check_task_id, check_text
from aioabort.dsn import parse_dsn
from aioabort.exceptions import InvalidRequest
from aioabort.poller import Poller, steady_pace
from aioabort.postgres.notifications import (
    LONGEST_PAYLOAD,
    VERSION,
    decode_notification,
    encode_notifications,
)
from aioabort.settings import Settings, read_settings

from .cases import fuzzed

ID = "5d2e4f0c-6a0e-4b8b-9d0c-0f7b1d7f5a11"

# Surrogates and control characters included: what a header or a form may hold.
anything = st.text(st.characters(codec=None), max_size=300)
names = st.text(max_size=160)
payloads = st.one_of(
    anything,
    anything.map(VERSION.__add__),
    st.lists(names).map(lambda ids: VERSION + ",".join(ids)),
    st.sampled_from(["", "1:", "1:*", "1:,", "1:,,", "2:a", "1", ":", "\0"]),
)


@fuzzed(0.18, payloads, ["1:*", "1:", f"1:{ID}", f"1:{ID},{ID}", "2:x"])
def test_notification(payload: str) -> None:
    """Each payload names ids or means "all"; the poller takes it at once."""
    poller = Poller(steady_pace(1.0))
    poller.add("awaited")

    hint = decode_notification(payload)
    poller.on_notification(hint)

    assert hint is None or all(isinstance(task_id, str) for task_id in hint)
    assert len(poller) == 1


@fuzzed(
    0.1,
    st.lists(st.one_of(names, st.uuids().map(str)), max_size=400),
    [[str(ID) for _ in range(size)] for size in (0, 1, 3, 100)],
)
def test_hints_come_back(task_ids: list[str]) -> None:
    """What is encoded is decoded: every id is named, or everything is to be looked at."""
    encoded = list(encode_notifications(task_ids))

    assert all(len(payload.encode()) <= LONGEST_PAYLOAD for payload in encoded)
    decoded = [decode_notification(payload) for payload in encoded]
    named = {task_id for hint in decoded if hint is not None for task_id in hint}
    assert None in decoded or set(filter(None, task_ids)) <= named


@fuzzed(
    0.15,
    st.one_of(anything, st.none(), st.integers(), st.binary(), st.text(min_size=140)),
    [str(ID), "x" * 155, None],
)
def test_task_id(value: object) -> None:
    """An id is one that PostgreSQL can store, or refused."""
    try:
        check_task_id(value)
    except InvalidRequest as error:
        assert len(str(error)) < 2_000
    else:
        assert isinstance(value, str)
        assert 0 < len(value) <= 155
        assert "\0" not in value
        value.encode()


@fuzzed(
    0.1,
    st.one_of(anything, st.none(), st.integers()),
    ["user pressed cancel", "é" * 2_047, "x" * 4_095, None],
)
def test_reason(value: object) -> None:
    """A reason is one that PostgreSQL can store, or refused."""
    try:
        check_text("reason", value)
    except InvalidRequest as error:
        assert str(error).startswith("reason ")
    else:
        assert value is None or len(str(value).encode()) <= 4_096


@fuzzed(
    0.05,
    st.one_of(st.floats(), st.integers(), st.booleans(), anything, st.none()),
    [30, 0.5, None, "30"],
)
def test_grace(value: object) -> None:
    """A grace is one that PostgreSQL can add to now, or refused."""
    try:
        check_grace(value)
    except InvalidRequest as error:
        assert str(error).startswith("grace ")
    else:
        assert value is None or 0 <= float(str(value)) <= 4e9


schemes = st.sampled_from(
    [
        *("postgresql", "postgres", "db+postgresql", "db+postgresql+psycopg"),
        *("aioabort+postgresql", "postgresql+asyncpg", "mysql", "", "db+", "://"),
    ]
)
URLS = (
    "postgresql://user:Geheim@host:5432/database",
    "db+postgresql+psycopg://user:Geheim@[::1]/database?sslmode=require",
    "postgres://user:Geheim@a:1,b:2/database?target_session_attrs=read-write",
    "postgresql://user:Geheim@/database?host=%2Frun%2Fpostgresql&port=5433",
)
SETTINGS = (
    *("dsn", "listen_dsn", "notify", "poll_interval", "pool_max_size"),
    *("request_expires", "create_tables", "dns", "poll_intervall"),
)
secrets = st.text(st.sampled_from("s3cr3t!@:/?#%&=,[] "), min_size=1).map(
    "Geheim".__add__
)
parameters = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(
                [
                    *("host", "port", "user", "password", "sslmode", "options"),
                    *("connect_timeout", "application_name", "dbname", "service"),
                    *("target_session_attrs", "statement_cache_size", "keepalives"),
                ]
            ),
            names,
        ),
        st.one_of(names, st.integers().map(str)),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a URL and the password in it, which may be encoded or not."""
    secret = draw(secrets)
    password = quote(secret, safe="") if draw(st.booleans()) else secret
    host = draw(st.sampled_from(["h", "h:1", "[::1]:5", "a,b:2", "", "%2Ftmp", "h:x"]))
    rest = draw(st.one_of(st.just("/db"), names.map("/".__add__)))
    query = draw(parameters)
    url = f"{draw(schemes)}://user:{password}@{host}{rest}?{query}"
    return url, secret


@fuzzed(
    0.21,
    st.one_of(urls().map(lambda drawn: drawn[0]), anything, st.none(), st.binary()),
    [*URLS, None],
)
def test_dsn(url: object) -> None:
    """A URL is understood or refused."""
    try:
        dsn = parse_dsn(url, setting="aioabort_dsn")
    except ImproperlyConfigured as error:
        assert str(error).startswith("aioabort_dsn: ")
    else:
        assert dsn.url.startswith("postgresql://")


@fuzzed(0.03, urls())
def test_password(drawn: tuple[str, str]) -> None:
    """The password is not shown, whether the URL is understood or refused."""
    url, secret = drawn
    try:
        shown = repr(parse_dsn(url, setting="aioabort_dsn"))
    except ImproperlyConfigured as error:
        shown = str(error)
    assert secret not in shown


@fuzzed(
    0.1,
    st.tuples(
        st.sampled_from(SETTINGS),
        st.one_of(
            *(st.none(), st.booleans(), st.integers(), st.floats(), anything),
            *(st.timedeltas(), st.just(URLS[0])),
        ),
    ),
    [(name, value) for name in SETTINGS for value in (URLS[0], 1, 0.5, True, None)],
)
def test_settings(setting: tuple[str, object]) -> None:
    """A setting works or is refused by its name."""
    name, value = setting
    app = Celery("fuzz", broker="memory://", set_as_current=False)
    app.conf.result_backend = "db+postgresql://user@host/database"
    app.conf[f"aioabort_{name}"] = value
    try:
        result = read_settings(app)
    except ImproperlyConfigured as error:
        assert "aioabort" in str(error)
    else:
        assert isinstance(result, Settings)
        assert result.poll_interval > 0
        assert result.pool_max_size >= 1
