"""The address of PostgreSQL for aioabort, taken from Django's DATABASES."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from celery.exceptions import ImproperlyConfigured
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils.connection import ConnectionDoesNotExist

from aioabort.dsn import Dsn, parse_dsn

#: Keys of OPTIONS that are for Django or its driver, or do not change where a connection
#: leads: the heartbeat of aioabort replaces keepalives.
_IGNORED: Final = {
    *("assume_role", "isolation_level", "pool", "server_side_binding"),
    *("autocommit", "connection_factory", "context", "cursor_factory"),
    *("prepare_threshold", "row_factory", "fallback_application_name"),
    *("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
    "tcp_user_timeout",
}


class UnknownAlias(ImproperlyConfigured):
    """DATABASES has no such alias."""


class NotPostgreSQL(ImproperlyConfigured):
    """The database of the alias is not PostgreSQL."""


def request_alias() -> str:
    """Return the alias of the database that has the abort requests."""
    return getattr(settings, "AIOABORT_DATABASE", None) or DEFAULT_DB_ALIAS


def is_postgresql(alias: str) -> bool:
    """Whether *alias* is PostgreSQL; raises UnknownAlias if DATABASES has none such."""
    try:
        return connections[alias].vendor == "postgresql"
    except ConnectionDoesNotExist:
        known = ", ".join(map(repr, connections))
        raise UnknownAlias(
            f"AIOABORT_DATABASE is {alias!r}, and DATABASES has only {known}"
        ) from None


def dsn_from_databases() -> Dsn:
    """Return the address that the alias has now: a test runner changes its database.

    Raises ImproperlyConfigured if there is no such alias, if it is not PostgreSQL, or if
    asyncpg does not support one of its OPTIONS.
    """
    alias = request_alias()
    setting = f"DATABASES[{alias!r}]"
    if not is_postgresql(alias):
        raise NotPostgreSQL(
            f"{setting} is {connections[alias].display_name}, and aioabort needs "
            "PostgreSQL: name another alias in AIOABORT_DATABASE, or set aioabort_dsn"
        )
    query = urlencode(_parameters(connections[alias].settings_dict), quote_via=quote)
    return parse_dsn(f"postgresql:///?{query}", setting=setting)


def _parameters(database: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters with which Django connects, by libpq's names."""
    options: dict[str, Any] = database["OPTIONS"]
    login = {
        "user": database["USER"],
        "password": database["PASSWORD"],
        "host": _bracketed(str(database["HOST"] or "")),
        "port": database["PORT"],
    }
    given: dict[str, Any] = {
        # Without a name Django connects to this one.
        "dbname": "postgres" if database["NAME"] is None else database["NAME"],
        **{key: value for key, value in options.items() if key not in _IGNORED},
        **{key: value for key, value in login.items() if value},
    }
    if role := options.get("assume_role"):
        given["options"] = f"{given.get('options') or ''} -c role={_escaped(role)}"
    return {key: str(value) for key, value in given.items() if value not in (None, "")}


def _bracketed(hosts: str) -> str:
    """Put IPv6 addresses in brackets, as URLs need them."""
    return ",".join(
        f"[{host}]" if ":" in host and host[0] not in "/[" else host
        for host in hosts.split(",")
    )


def _escaped(value: str) -> str:
    """Return *value* as one word of the parameter ``options``."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
