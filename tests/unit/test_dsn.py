import traceback
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from aioabort.dsn import is_postgresql, parse_dsn

# With the prefix, no name and no message contains a generated password by accident.
passwords = st.text(min_size=8).map("Zq0".__add__)
names = st.text(min_size=1).filter(lambda name: "Zq0" not in name)
hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses().map(str),
)
ports = st.none() | st.integers(1, 65535)


@pytest.fixture(autouse=True, scope="module")
def no_variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE", "PASSFILE"):
            patch.delenv(f"PG{name}", raising=False)
        patch.setenv("PGUSER", "default")
        yield


def understood(url: str, *, ssl: bool | None = False) -> tuple[Any, Any]:
    """Return the addresses and parameters that asyncpg reads from a DSN."""
    parse = import_module("asyncpg.connect_utils")._parse_connect_dsn_and_args
    unset = dict.fromkeys(signature(parse).parameters)
    parsed: tuple[Any, Any] = parse(**unset | {"dsn": url, "ssl": ssl})
    return parsed


def addresses(url: str) -> Any:
    return understood(parse_dsn(url, setting="aioabort_dsn").url)[0]


def refusal(url: object) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        parse_dsn(url, setting="aioabort_dsn")
    return str(caught.value)


def shown(url: str) -> str:
    """Return what could be logged: the traceback of the error, or the DSN."""
    try:
        dsn = parse_dsn(url, setting="aioabort_dsn")
    except ImproperlyConfigured as error:
        return "".join(traceback.format_exception(error))
    return f"{dsn} {dsn!r}"


@given(names, st.none() | passwords, hosts, ports, names)
def test_urls_of_sqlalchemy_mean_the_same_to_asyncpg(
    user: str, password: str | None, host: str, port: int | None, database: str
) -> None:
    """User, password, host, port and database survive the translation."""
    url = URL.create("postgresql+psycopg", user, password, host, port, database)

    dsn = parse_dsn(url.render_as_string(hide_password=False), setting="x")

    where, who = understood(dsn.url)
    assert where == [(host, port or 5432)]
    assert (who.user, who.password, who.database) == (user, password, database)


@given(names, passwords, hosts, names)
def test_passwords_stay_out_of_sight(
    user: str, password: str, host: str, database: str
) -> None:
    """Neither str() nor repr() shows the password, str() shows the rest."""
    url = URL.create("postgresql", user, password, host, 5432, database)

    dsn = parse_dsn(url.render_as_string(hide_password=False), setting="x")

    assert password not in f"{dsn} {dsn!r}"
    where, who = understood(str(dsn))
    assert where == [(host, 5432)]
    assert (who.user, who.password, who.database) == (user, None, database)


@given(st.text(alphabet="/?#:%&=+[] ,aé1", min_size=5).map("Zq0".__add__))
def test_unencoded_passwords_are_read_as_sqlalchemy_reads_them(password: str) -> None:
    """A password that SQLAlchemy accepts as it is means the same to asyncpg."""
    url = f"postgresql+psycopg://user:{password}@host:5433/database"
    expected = make_url(url)

    where, who = understood(parse_dsn(f"db+{url}", setting="x").url)

    assert (who.user, who.password) == (expected.username, expected.password)
    assert where == [(expected.host, expected.port)]
    assert who.database == expected.database


@given(
    passwords,
    st.sampled_from(
        [
            "{}",
            "mysql://user:{}@host/database",
            "postgresql:user:{}@host",
            "postgresql://user:{}/database",
            "postgresql://user:{}@host:port/database",
            "postgresql://user:{}@host:99999/database",
            "postgresql://user:{}@one,,two/database",
            "postgresql://user:{}@host/database?nonsense=1",
            "postgresql://user:{}@host/database?sslmode=nonsense",
            "postgresql://user:x@{}@host/database",
            "postgresql://user:x@y?{}=@host/database",
            "postgresql://host/?port={}",
            "postgresql://host/?connect_timeout={}",
            "postgresql://host/?password={0}&password={0}",
            "postgresql://host:5432/?password={}&user=you@tenant",
            "postgresql://host?password={}&user=you@tenant",
        ]
    ),
)
def test_bad_urls_do_not_tell_the_password(password: str, url: str) -> None:
    """No error about a URL shows its password."""
    assert password not in shown(url.format(password))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pass@word@host/database",
        "postgresql://user:pass@word/more@host/database",
        "postgresql://user:@word@host/database",
        "postgresql://user:pass@word?more=1@host/database",
        "postgresql://host:5432/?user=you@tenant",
        "postgresql://host:5432/database?password=word&user=you@tenant",
        "postgresql://host?user=you@tenant",
    ],
)
def test_ambiguous_urls_are_refused(url: str) -> None:
    """An '@' that might be a part of the password must be encoded."""
    message = refusal(url)

    assert "write '@' as %40" in message
    assert "word" not in message.replace("the password ends", "")


def test_nothing_is_chained_to_a_refusal() -> None:
    """Python's own error, here about a byte that is not UTF-8, shows the whole password."""
    with pytest.raises(ImproperlyConfigured) as caught:
        parse_dsn("postgresql://user:s3cret\udcff@host", setting="x")

    assert caught.value.__context__ is None


def test_password_parameters_stay_out_of_sight() -> None:
    """A password in the query is moved or masked."""
    url = "postgresql://host/?password=s3cret&user=you&sslpassword=s3cret&options=x"

    dsn = parse_dsn(url, setting="aioabort_dsn")

    assert understood(dsn.url)[1].password == "s3cret"
    assert str(dsn) == "postgresql://you@host?sslpassword=***&options=x"


@pytest.mark.parametrize(
    "scheme",
    [
        "postgresql",
        "postgres",
        "postgresql+psycopg",
        "postgresql+asyncpg",
        "db+postgresql",
        "db+postgresql+psycopg2",
        "aioabort+postgresql",
        "aioabort+postgresql+psycopg",
    ],
)
def test_every_way_to_write_the_scheme_is_read(scheme: str) -> None:
    """Prefixes for Celery and drivers for SQLAlchemy are left out."""
    url = f"{scheme}://user@host/database"

    assert is_postgresql(url)
    assert parse_dsn(url, setting="x").url == "postgresql://user@host/database"


@pytest.mark.parametrize(
    "url",
    [
        None,
        5432,
        "",
        "host/database",
        "redis://host",
        "db+sqlite:///file",
        "db+mysql+pymysql://host/postgresql",
        "https+postgresql://host",
        "postgresqlx://host",
        make_url("postgresql://host"),
    ],
)
def test_other_things_than_postgresql_are_refused(url: object) -> None:
    """The error about a URL that is not PostgreSQL's names the setting."""
    assert not is_postgresql(url)
    assert "aioabort_dsn: not a PostgreSQL URL" in refusal(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://h", [("h", 5432)]),
        ("postgresql://h1:1,h2:2/d", [("h1", 1), ("h2", 2)]),
        ("postgresql://h1,h2:2/d", [("h1", 5432), ("h2", 2)]),
        ("postgresql://[::1]:1/d", [("::1", 1)]),
        ("postgresql://h:1,[::1]/d", [("h", 1), ("::1", 5432)]),
        ("postgresql://%2Fdir:1/d", ["/dir/.s.PGSQL.1"]),
        ("postgresql:///d?host=/dir", ["/dir/.s.PGSQL.5432"]),
        ("postgresql:///d?host=/dir&port=1", ["/dir/.s.PGSQL.1"]),
        ("postgresql://u@/d?host=/a:b:c&port=1", ["/a:b:c/.s.PGSQL.1"]),
        ("postgresql://localhost/d?host=/dir", ["/dir/.s.PGSQL.5432"]),
        ("postgresql://localhost:1/d?host=/dir", ["/dir/.s.PGSQL.1"]),
        ("postgresql:///d?host=h:1", [("h", 1)]),
        ("postgresql:///d?host=h1:1&host=h2:2", [("h1", 1), ("h2", 2)]),
        ("postgresql:///d?host=h1,h2&port=1,2", [("h1", 1), ("h2", 2)]),
        ("postgresql:///d?host=h1&host=h2&port=1&port=2", [("h1", 1), ("h2", 2)]),
        ("postgresql:///d?host=h1,h2&port=1", [("h1", 1), ("h2", 1)]),
        ("postgresql:///d?host=h1,h2&port=1,", [("h1", 1), ("h2", 5432)]),
        ("postgresql://h/d?port=1", [("h", 1)]),
    ],
)
def test_hosts_are_found_wherever_they_stand(url: str, expected: object) -> None:
    """Lists, sockets, IPv6 and the query lead to the addresses they name."""
    assert addresses(url) == expected


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("postgresql://", 5432),
        ("postgresql:///database", 5432),
        ("postgresql://user@/database", 5432),
        ("postgresql://:5433/database", 5433),
        ("postgresql:///database?port=5433", 5433),
    ],
)
def test_missing_hosts_are_left_to_asyncpg(url: str, port: int) -> None:
    """Without a host, asyncpg looks for a socket and then at localhost."""
    assert addresses(url)[-1] == ("localhost", port)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h1,h2,h3/?port=1,2",
        "postgresql://?port=1,2",
        "postgresql://h1,,h2/",
        "postgresql://h:0/",
        "postgresql://h:65536/",
        "postgresql://h:x/",
        "postgresql://h:1:2/",
        "postgresql://[::1/",
        "postgresql://[::1]x/",
        "postgresql://::1/",
    ],
)
def test_hosts_that_cannot_be_read_are_refused(url: str) -> None:
    """asyncpg would fail on these at every connection, or connect elsewhere."""
    assert "port" in refusal(url)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("user=you", ("you", "pw", "database")),
        ("password=better", ("me", "better", "database")),
        ("password=a%0Ab", ("me", "a\nb", "database")),
        ("dbname=other", ("me", "pw", "other")),
        ("database=other", ("me", "pw", "other")),
        ("user=", ("me", "pw", "database")),
    ],
)
def test_the_query_has_the_last_word(query: str, expected: object) -> None:
    """As in libpq and SQLAlchemy, a parameter wins over the authority."""
    _, who = understood(
        parse_dsn(f"db+postgresql://me:pw@h/database?{query}", setting="x").url
    )

    assert (who.user, who.password, who.database) == expected


@pytest.mark.parametrize("name", ["user", "password", "database"])
def test_what_is_empty_is_left_to_asyncpg(name: str) -> None:
    """Empty parts of a URL do not hide PGUSER, PGPASSWORD and PGDATABASE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"PG{name.upper()}", "default")
        _, who = understood(parse_dsn("postgresql://:@host/?user=", setting="x").url)

    assert getattr(who, name) == "default"


@pytest.mark.parametrize(
    "query",
    [
        "application_name=a%20b",
        "gsslib=gssapi",
        "krbsrvname=postgres",
        "options=-c%20search_path%3Dx",
        "passfile=/nowhere",
        "service=nowhere",
        "ssl_max_protocol_version=TLSv1.3",
        "ssl_min_protocol_version=TLSv1.2",
        "sslcert=/nowhere",
        "sslcrl=/nowhere",
        "sslkey=/nowhere",
        "sslmode=disable",
        "sslmode=verify-full",
        "sslnegotiation=postgres",
        "sslpassword=x",
        "sslrootcert=/nowhere",
        "target_session_attrs=prefer-standby",
        "target_session_attrs=read-only",
    ],
)
def test_parameters_known_to_asyncpg_are_kept(query: str) -> None:
    """asyncpg gets them unchanged, and sends only server settings to the server."""
    dsn = parse_dsn(f"postgresql://host?{query}", setting="x")

    assert dsn.url == f"postgresql://host?{query}"
    server_settings = understood(dsn.url)[1].server_settings or {}
    assert server_settings.keys() <= {"application_name", "options"}


@pytest.mark.parametrize(
    "query",
    [
        "channel_binding=prefer",
        "channel_binding=disable",
        "client_encoding=utf8",
        "gssencmode=disable",
        "gssencmode=prefer",
        "keepalives=1",
        "keepalives_count=3",
        "keepalives_idle=30",
        "keepalives_interval=10",
        "sslmode=",
    ],
)
def test_parameters_that_ask_for_nothing_are_dropped(query: str) -> None:
    """Parameters for what asyncpg does anyway are dropped: the server would refuse them."""
    assert parse_dsn(f"postgresql://h?{query}", setting="x").url == "postgresql://h"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("tcp_user_timeout=1", "tcp_user_timeout"),
        ("async_fallback=True", "async_fallback"),
        ("channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("keepalives=0", "keepalives"),
        ("sslmode=maybe", "sslmode"),
        ("ssl=true", "ssl"),
        ("sslrootcert=system", "sslrootcert"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version"),
        ("target_session_attrs=any,standby", "target_session_attrs"),
        ("connect_timeout=-1", "connect_timeout"),
        ("connect_timeout=nan", "connect_timeout"),
        ("prepared_statement_cache_size=-1", "prepared_statement_cache_size"),
        ("sslmode=require&sslmode=disable", "sslmode"),
        ("sslmode=require&ssl=disable", "ssl"),
    ],
)
def test_parameters_that_cannot_be_honoured_are_refused(query: str, name: str) -> None:
    """The message names the setting and the parameter."""
    message = refusal(f"postgresql://host?{query}")

    assert message.startswith("aioabort_dsn: ")
    assert repr(name) in message


def test_an_at_sign_in_a_parameter_is_allowed() -> None:
    """The common application_name=worker@host needs no encoding."""
    url = "postgresql://me:secret@host?application_name=worker@host"

    _, who = understood(parse_dsn(url, setting="x").url)

    assert (who.user, who.password) == ("me", "secret")
    assert who.server_settings == {"application_name": "worker@host"}


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", None),
        ("connect_timeout=", None),
        ("connect_timeout=0", None),
        ("connect_timeout=10", 10.0),
        ("connect_timeout=2.5", 2.5),
    ],
)
def test_connect_timeout_becomes_an_argument(query: str, seconds: float | None) -> None:
    """The server does not know the setting; zero means no timeout, as in libpq."""
    dsn = parse_dsn(f"postgresql://host?{query}", setting="x")

    assert dsn.connect_timeout == seconds
    assert dsn.url == "postgresql://host"


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("", None),
        ("statement_cache_size=0", 0),
        ("prepared_statement_cache_size=0", 0),
        ("prepared_statement_cache_size=500", 500),
    ],
)
def test_statement_cache_size_becomes_an_argument(query: str, size: int | None) -> None:
    """Both asyncpg's and SQLAlchemy's name of it are known, and zero is kept."""
    dsn = parse_dsn(f"postgresql://host?{query}", setting="x")

    assert dsn.statement_cache_size == size
    assert dsn.url == "postgresql://host"


def test_ssl_means_sslmode() -> None:
    """The ssl parameter of SQLAlchemy's asyncpg dialect is asyncpg's sslmode."""
    dsn = parse_dsn("postgresql+asyncpg://host?ssl=require", setting="x")

    assert understood(dsn.url, ssl=None)[1].sslmode.name == "require"
