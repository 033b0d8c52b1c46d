"""What the configuration of a Celery app says about aioabort, read once."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Final, cast

from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from celery.exceptions import ImproperlyConfigured

from aioabort.dsn import Dsn, is_postgresql, parse_dsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of an app, checked; durations are seconds.

    *results_in_dsn* tells whether Celery's results are in PostgreSQL: their table is
    then looked for at *dsn*. *stores_results*: the result backend is aioabort's own.
    """

    dsn: Dsn
    listen_dsn: Dsn
    notify: bool = True
    poll_interval: float = 1.0
    pool_max_size: int = 10
    request_expires: float = 30 * 86_400.0
    create_tables: bool = True
    task_table: str = "celery_taskmeta"
    schema: str | None = None
    results_in_dsn: bool
    stores_results: bool = False
    group_table: str = "celery_tasksetmeta"
    group_schema: str | None = None


def read_settings(app: Celery) -> Settings:
    """Read the settings of *app*, without touching its backend or a network.

    None is no value. Raises ImproperlyConfigured for a value that cannot work, and for
    an ``aioabort_`` key that nobody reads: misspelt, it would be ignored in silence.
    """
    _refuse_unknown_keys(app)
    setting, results = _result_backend(app)
    given: dict[str, Any] = {
        name: check(f"aioabort_{name}", value)
        for name, check in _CHECKS.items()
        if (value := app.conf.get(f"aioabort_{name}")) is not None
    }
    if "dsn" not in given:
        given["dsn"] = _dsn_of_results(setting, results)
    given.setdefault("listen_dsn", given["dsn"])
    return Settings(
        **given,
        **_tables_of_results(app),
        results_in_dsn=is_postgresql(results),
        stores_results=_is_ours(app, results),
    )


def _is_ours(app: Celery, results: object) -> bool:
    backend = cast("object", app.backend_cls or app.conf.result_backend)
    names = [name for name in (backend, results) if isinstance(name, str)]
    return is_postgresql(results) and any(
        name.partition("+")[0] == "aioabort" for name in names
    )


def _url(key: str, value: object) -> Dsn:
    return parse_dsn(value, setting=key)


def _flag(key: str, value: object) -> bool:
    # "false" from an environment variable is true in Python.
    if not isinstance(value, bool):
        raise _wrong(key, value, "True or False")
    return value


def _seconds(key: str, value: object) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not 0 < seconds < math.inf
    ):
        raise _wrong(key, value, "a positive number of seconds or a timedelta")
    return float(seconds)


def _count(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(key, value, "a whole number, 1 or more")
    return value


#: The settings by their names without ``aioabort_``, which are those in Settings.
_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "dsn": _url,
    "listen_dsn": _url,
    "notify": _flag,
    "poll_interval": _seconds,
    "pool_max_size": _count,
    "request_expires": _seconds,
    "create_tables": _flag,
}


def _wrong(key: str, value: object, wanted: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{key} must be {wanted}, not {value!r}")


def _refuse_unknown_keys(app: Celery) -> None:
    app.conf.finalize()
    namespace: str = getattr(app.conf, "prefix", None) or ""
    # With a namespace, Celery reads the bare key and NAMESPACE_KEY in its case.
    prefix = namespace + ("AIOABORT_" if namespace.isupper() else "aioabort_")
    spelling = {
        name: prefix + (name.upper() if prefix.isupper() else name) for name in _CHECKS
    }
    read = {*spelling.values(), *(f"aioabort_{name}" for name in _CHECKS)}
    for key in cast("Iterable[str]", app.conf):
        bare = key.lower().removeprefix((namespace or "celery_").lower())
        if bare.startswith("aioabort_") and key not in read:
            close = get_close_matches(bare.removeprefix("aioabort_"), _CHECKS, n=1)
            hint = f"; did you mean {spelling[close[0]]!r}?" if close else ""
            raise ImproperlyConfigured(f"aioabort has no setting {key!r}{hint}")


def _result_backend(app: Celery) -> tuple[str, object]:
    """Return the URL or name of the result backend, after the setting it is in."""
    backend = cast("object", app.backend_cls or app.conf.result_backend)
    is_url = isinstance(backend, str) and "://" in backend
    is_other = backend in BACKEND_ALIASES and backend not in {"database", "db"}
    # A class, or an alias that is not Celery's own, may be a child of the database
    # backend too; no other backend has a use for database_url.
    if not backend or is_url or is_other or not app.conf.database_url:
        return "result_backend", backend
    return "database_url", app.conf.database_url


def _dsn_of_results(setting: str, results: object) -> Dsn:
    if is_postgresql(results):
        return parse_dsn(results, setting=setting)
    # No more than the scheme, because a password may follow.
    text = str(getattr(results, "__name__", results or "disabled"))
    name = re.sub(r"[^\w.+-].*", "", text, flags=re.DOTALL)
    raise ImproperlyConfigured(
        "aioabort needs PostgreSQL: the result backend is"
        f" {name!r} and aioabort_dsn is not set"
    )


def _tables_of_results(app: Celery) -> dict[str, Any]:
    tables = {
        "task_table": _name_for("task", "database_table_names", app),
        "schema": _name_for("task", "database_table_schemas", app),
        "group_table": _name_for("group", "database_table_names", app),
        "group_schema": _name_for("group", "database_table_schemas", app),
    }
    return {field: name for field, name in tables.items() if name}


def _name_for(kind: str, key: str, app: Celery) -> str | None:
    names: Any = app.conf.get(key) or {}
    name: object = names.get(kind) if hasattr(names, "get") else names
    if name is names or not isinstance(name, str | None):
        raise _wrong(key, names, "a dict of names, such as {'task': 'name'}")
    return name
