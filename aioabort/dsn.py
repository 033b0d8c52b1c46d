"""A database URL as people write it, in the words of asyncpg.

Celery, SQLAlchemy, libpq and asyncpg differ in what they read. asyncpg knows neither
drivers in the scheme nor passwords that are not percent-encoded, and sends every
parameter it does not know to the server, which then refuses the connection. So a URL
is taken apart as SQLAlchemy does and written anew. What cannot be honoured is refused
here, when the settings are read, and not at every attempt to connect.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from celery.exceptions import ImproperlyConfigured

_SCHEME: Final = re.compile(r"(?:(?:db|aioabort)\+)?postgres(?:ql)?(?:\+\w+)?://")
_REST: Final = re.compile(
    r"""
    (?: (?P<user>[^:/]*) (?: : (?P<password>[^@]*) )? @ )?
    (?P<hosts>[^/?]*)
    (?: / (?P<database>[^?]*) )?
    (?: \? (?P<query>.*) )?
    """,
    re.VERBOSE,
)
_HOST: Final = re.compile(
    r"(?: \[ (?P<ipv6>[^]]+) \] | (?P<name>/.*?|[^][:]*) ) (?: : (?P<port>\d*) )?",
    re.VERBOSE,
)

_ENCODE: Final = "write '@' as %40, ':' as %3A, '/' as %2F and '?' as %3F"

# Parameters by their names, with the values that can be honoured.
_ANY: Final = r".+"
_NUMBER: Final = r"\d{1,9}"
#: Parameters that stand elsewhere in a Dsn than in the query.
_MOVED: Final = dict.fromkeys(("database", "host", "password", "user"), _ANY) | {
    "connect_timeout": rf"{_NUMBER}(\.\d+)?",
    "port": r"[\d,]+",
    "statement_cache_size": _NUMBER,
}
#: Parameters that asyncpg reads as libpq does.
_KEPT: Final = {
    **dict.fromkeys(("application_name", "options", "service"), _ANY),
    **dict.fromkeys(("krbsrvname", "passfile", "sslpassword"), _ANY),
    **dict.fromkeys(("sslcert", "sslcrl", "sslkey"), _ANY),
    "gsslib": r"gssapi|sspi",
    "ssl_max_protocol_version": r"TLSv1(\.[123])?",
    "ssl_min_protocol_version": r"TLSv1(\.[123])?",
    "sslmode": r"disable|allow|prefer|require|verify-ca|verify-full",
    "sslnegotiation": r"postgres|direct",
    "sslrootcert": r"(?!system$).+",  # asyncpg would look for a file of that name
    "target_session_attrs": r"any|primary|standby|read-(write|only)|prefer-standby",
}
#: Parameters that ask for nothing that asyncpg would not do anyway. Keepalives are
#: replaced by a heartbeat; as server settings they would be refused by PgBouncer.
_DROPPED: Final = {
    **dict.fromkeys(("channel_binding", "gssencmode"), r"prefer|disable"),
    "client_encoding": _ANY,  # asyncpg reads UTF-8 and garbles the rest
    "keepalives": r"1",
    "keepalives_count": _NUMBER,
    "keepalives_idle": _NUMBER,
    "keepalives_interval": _NUMBER,
}
_VALUES: Final = _MOVED | _KEPT | _DROPPED
_ALIASES: Final = {
    "dbname": "database",
    "prepared_statement_cache_size": "statement_cache_size",
    "ssl": "sslmode",
}


@dataclass(frozen=True, slots=True)
class Dsn:
    """Where PostgreSQL is, in the words of asyncpg; ``parse_dsn`` makes it."""

    url: str = field(repr=False)
    connect_timeout: float | None = None
    statement_cache_size: int | None = None

    @property
    def has_several_hosts(self) -> bool:
        """Whether one of several servers is to be chosen."""
        # Commas elsewhere, as in a password, are encoded.
        return "," in urlsplit(self.url).netloc

    def __str__(self) -> str:
        """Return the URL without its passwords, for logs and errors."""
        shown = re.sub(r"//([^:@/]*):[^@]*@", r"//\1@", self.url)
        return re.sub(r"([?&]sslpassword)=[^&]*", r"\1=***", shown)


def is_postgresql(url: object) -> bool:
    """Whether *url* names PostgreSQL, in Celery's, SQLAlchemy's or libpq's way."""
    return isinstance(url, str) and _SCHEME.match(url) is not None


def parse_dsn(url: object, *, setting: str) -> Dsn:
    """Translate *url*, which is the value of *setting*.

    Raises ImproperlyConfigured if that is not possible. Of the URL, its message tells
    at most the name of a parameter.
    """
    try:
        return _translate(url)
    except ValueError as error:
        problem = str(error)
    # Outside the handler, so that no error that knows the URL is chained.
    raise ImproperlyConfigured(f"{setting}: {problem}")


def _translate(url: object) -> Dsn:
    scheme = _SCHEME.match(url) if isinstance(url, str) else None
    parts = scheme and _REST.fullmatch(scheme.string, scheme.end())
    if not parts:
        raise ValueError("not a PostgreSQL URL such as postgresql://user@host/database")
    _refuse_ambiguous(parts)
    query = _read_query(parts["query"] or "")
    hosts = _hosts(parts["hosts"], query)
    kept = {name: value for name, value in query.items() if name in _KEPT}
    login = {
        name: query.get(name) or unquote(parts[name] or "")
        for name in ("user", "password", "database")
    }
    if hosts.startswith(":"):
        # asyncpg would take this for a host without a name.
        kept["port"], hosts = hosts[1:], ""
    cache_size = query.get("statement_cache_size")
    return Dsn(
        _render(hosts, kept, **login),
        connect_timeout=float(query.get("connect_timeout", 0)) or None,
        statement_cache_size=None if cache_size is None else int(cache_size),
    )


def _refuse_ambiguous(parts: re.Match[str]) -> None:
    """Refuse a URL in which an '@' may belong to the password or to what follows.

    A wrong guess would show a piece of the password as a host or a parameter.
    """
    user, password = parts["user"] or "", parts["password"] or ""
    behind = (parts["hosts"] or "") + (parts["database"] or "")
    if (
        "?" in user
        or re.match(r"\d*/[^?]*\?\w+=", password)
        or ("@" in behind and parts["user"] is not None)
    ):
        raise ValueError(f"it is not clear where the password ends; {_ENCODE}")


def _read_query(text: str) -> dict[str, str]:
    """Return the parameters by their canonical names, each with one valid value."""
    query: dict[str, str] = {}
    for name, value in parse_qsl(text):
        key = _ALIASES.get(name, name)
        if key not in _VALUES:
            raise ValueError(
                # With an '@' behind it, the name may be a piece of the password.
                f"asyncpg does not know one of the parameters; {_ENCODE}"
                if "@" in text
                else f"asyncpg does not know the parameter {name!r}; remove it"
            )
        if not re.fullmatch(_VALUES[key], value, re.DOTALL):
            raise ValueError(f"asyncpg cannot honour this value of {name!r}")
        if key not in query:
            query[key] = value
        elif key in {"host", "port"}:
            query[key] += f",{value}"
        else:
            raise ValueError(f"the parameter {name!r} has more than one value")
    return query


def _hosts(authority: str, query: Mapping[str, str]) -> str:
    """Return "host:port,host" with the hosts encoded, sockets and IPv6 included.

    The query has the last word, as in libpq and SQLAlchemy but not in asyncpg:
    postgresql://user@localhost/database?host=/folder is a common way to name a socket.
    """
    hosts, ports = _split(authority)
    if "host" in query:
        hosts, own_ports = _split(quote(query["host"], safe=":/[],"))
        ports = own_ports if any(own_ports) else ports
    if "port" in query:
        ports = query["port"].split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts) or (len(hosts) > 1 and not all(hosts)):
        raise ValueError("the hosts and the ports do not match")
    if not all(port == "" or 0 < int(port) < 2**16 for port in ports):
        raise ValueError("a port must be between 1 and 65535")
    pairs = zip(hosts, ports, strict=True)
    return ",".join(
        f"{quote(host, safe='')}:{port}".removesuffix(":") for host, port in pairs
    )


def _split(hosts: str) -> tuple[list[str], list[str]]:
    matches = [_HOST.fullmatch(host) for host in hosts.split(",")]
    found = [match for match in matches if match]
    if len(found) < len(matches):
        raise ValueError("a host or a port cannot be read")
    names = [unquote(match["ipv6"] or match["name"]) for match in found]
    return names, [match["port"] or "" for match in found]


def _render(
    hosts: str, query: Mapping[str, str], *, user: str, password: str, database: str
) -> str:
    """Write the URL with everything encoded; what is empty is left to asyncpg."""
    login = quote(user, safe="") + (password and f":{quote(password, safe='')}")
    return (
        "postgresql://"
        + (login and f"{login}@")
        + hosts
        + (database and f"/{quote(database, safe='')}")
        + (f"?{urlencode(query, safe='/', quote_via=quote)}" if query else "")
    )
