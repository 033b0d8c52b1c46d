"""Translation of a database URL into one that asyncpg reads.

Celery, SQLAlchemy, libpq and asyncpg accept different URLs. asyncpg reads neither a
driver in the scheme nor a password that is not percent-encoded. It sends unknown
parameters to the server, which then refuses the connection. So we parse a URL as
SQLAlchemy does and write it again for asyncpg. A URL that asyncpg cannot use is refused
when the settings are read, rather than at each attempt to connect.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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

# Parameters by name, with a pattern of the values that asyncpg can use.
_ANY: Final = r".+"
_NUMBER: Final = r"\d{1,9}"
#: Parameters that a Dsn keeps outside the query of its URL.
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
    "sslrootcert": r"(?!system$).+",  # asyncpg would open a file named "system"
    "target_session_attrs": r"any|primary|standby|read-(write|only)|prefer-standby",
}
#: Parameters whose values ask for what asyncpg does anyway. Our heartbeat replaces
#: keepalives, which PgBouncer would refuse as server settings.
_DROPPED: Final = {
    **dict.fromkeys(("channel_binding", "gssencmode"), r"prefer|disable"),
    "client_encoding": _ANY,  # asyncpg supports UTF-8 only
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
    """The address of PostgreSQL for asyncpg, as ``parse_dsn()`` returns it.

    Errors name *setting*, the setting that the address comes from.
    """

    url: str = field(repr=False)
    connect_timeout: float | None = None
    statement_cache_size: int | None = None
    setting: str = field(default="", compare=False)

    @property
    def has_several_hosts(self) -> bool:
        """Whether the URL names several servers."""
        # A comma elsewhere, such as in a password, is percent-encoded.
        return "," in urlsplit(self.url).netloc

    def __str__(self) -> str:
        """Return the URL without passwords, for logs and errors."""
        shown = re.sub(r"//([^:@/]*):[^@]*@", r"//\1@", self.url)
        return re.sub(r"([?&]sslpassword)=[^&]*", r"\1=***", shown)


def is_postgresql(url: object) -> bool:
    """Whether *url* is a PostgreSQL URL of Celery, SQLAlchemy or libpq."""
    return isinstance(url, str) and _SCHEME.match(url) is not None


def parse_dsn(url: object, *, setting: str) -> Dsn:
    """Translate *url*, the value of *setting*.

    Raises ImproperlyConfigured if asyncpg cannot use it. The message shows no part of
    the URL except the name of a parameter.
    """
    try:
        return replace(_translate(url), setting=setting)
    except ValueError as error:
        problem = str(error)
    # Outside the except block: a chained error could show the URL.
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
        # asyncpg would read this as a host with an empty name.
        kept["port"], hosts = hosts[1:], ""
    cache_size = query.get("statement_cache_size")
    return Dsn(
        _render(hosts, kept, **login),
        connect_timeout=float(query.get("connect_timeout", 0)) or None,
        statement_cache_size=None if cache_size is None else int(cache_size),
    )


def _refuse_ambiguous(parts: re.Match[str]) -> None:
    """Refuse a URL in which an '@' may be a part of the password, or may end it.

    After a wrong guess, a message could show a part of the password as a host.
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
    """Return the valid parameters by their canonical names."""
    query: dict[str, str] = {}
    for name, value in parse_qsl(text):
        key = _ALIASES.get(name, name)
        if key not in _VALUES:
            raise ValueError(
                # If an '@' follows, the name may be a part of the password.
                f"asyncpg does not know one of the parameters; {_ENCODE}"
                if "@" in text
                else f"asyncpg does not know the parameter {name!r}; remove it"
            )
        if not re.fullmatch(_VALUES[key], value, re.DOTALL):
            raise ValueError(f"asyncpg does not support this value of {name!r}")
        if key not in query:
            query[key] = value
        elif key in {"host", "port"}:
            query[key] += f",{value}"
        else:
            raise ValueError(f"the parameter {name!r} occurs more than once")
    return query


def _hosts(authority: str, query: Mapping[str, str]) -> str:
    """Return "host:port,host" with encoded hosts, including sockets and IPv6.

    Parameters win over the authority, as in libpq and SQLAlchemy but not in asyncpg:
    postgresql://user@localhost/database?host=/folder commonly names a socket.
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
        raise ValueError("give one port for all hosts, or one for each host")
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
        raise ValueError("a host or a port is malformed")
    names = [unquote(match["ipv6"] or match["name"]) for match in found]
    return names, [match["port"] or "" for match in found]


def _render(
    hosts: str, query: Mapping[str, str], *, user: str, password: str, database: str
) -> str:
    """Return the URL, percent-encoded, and without empty parts."""
    login = quote(user, safe="") + (password and f":{quote(password, safe='')}")
    return (
        "postgresql://"
        + (login and f"{login}@")
        + hosts
        + (database and f"/{quote(database, safe='')}")
        + (f"?{urlencode(query, safe='/', quote_via=quote)}" if query else "")
    )
