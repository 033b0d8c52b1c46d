"""The settings of aioabort, read from the configuration of a Celery app."""

import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Final, cast

from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from celery.exceptions import ImproperlyConfigured

from aioabort.dsn import Dsn, is_postgresql, parse_dsn
from aioabort.timing import Timing, describe, is_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class OrmTables:
    """Where Django's ORM has its table of results, as its own connection finds it.

    ``oid``: None if the table does not exist. ``problem``: why there is no such place in
    PostgreSQL.
    """

    database: str | None = None
    started_at: str | None = None
    oid: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The valid settings of an app; durations are seconds.

    *results_in_dsn*: Celery's results are in PostgreSQL, in a table at *dsn*.
    *stores_results*: the result backend is aioabort's own. *results_in_orm*: it is that
    of django-celery-results; its table may be at *dsn*, which *orm_tables* decides if
    the ORM was asked.
    """

    dsn: Dsn
    listen_dsn: Dsn
    notify: bool = True
    poll_interval: float = 1.0
    pool_max_size: int = 10
    request_expires: float = 30 * 86_400.0
    create_tables: bool = True
    interrupt_signal: int = signal.SIGURG
    task_table: str = "celery_taskmeta"
    schema: str | None = None
    results_in_dsn: bool
    stores_results: bool = False
    results_in_orm: bool = False
    orm_tables: OrmTables | None = None
    timing: Timing = field(default_factory=Timing)
    group_table: str = "celery_tasksetmeta"
    group_schema: str | None = None


#: Asked for the DSN of an app whose configuration has none: a web framework knows it.
_dsn_providers: Final[list[Callable[[], Dsn]]] = []


def provide_dsn(provider: Callable[[], Dsn]) -> None:
    """Use the DSN that *provider* returns for every app that has none.

    It is called each time settings are read, and replaces an earlier provider.
    """
    _dsn_providers[:] = [provider]


def read_settings(app: Celery) -> Settings:
    """Read the settings of *app*; this uses neither its backend nor a network.

    A setting that is None counts as not set. Raises ImproperlyConfigured for an invalid
    value, and for an unknown ``aioabort_`` key, which is probably misspelt.
    """
    _refuse_unknown_keys(app)
    setting, results = _result_backend(app)
    given: dict[str, Any] = {
        name: check(f"aioabort_{name}", value)
        for name, check in _CHECKS.items()
        if (value := app.conf.get(f"aioabort_{name}")) is not None
    }
    if "dsn" not in given:
        given["dsn"] = _dsn_of_results(app, setting, results)
    given.setdefault("listen_dsn", given["dsn"])
    in_orm = _is_django(results)
    return Settings(
        **given,
        **(_DJANGO_TABLES if in_orm else _tables_of_results(app)),
        results_in_dsn=in_orm or is_postgresql(results),
        stores_results=_is_ours(app, results),
        results_in_orm=in_orm,
    )


def _is_ours(app: Celery, results: object) -> bool:
    backend = cast("object", app.backend_cls or app.conf.result_backend)
    names = [name for name in (backend, results) if isinstance(name, str)]
    return is_postgresql(results) and any(
        name.partition("+")[0] == "aioabort" for name in names
    )


_DJANGO_TABLES: Final[dict[str, Any]] = {
    "task_table": "django_celery_results_taskresult",
    "group_table": "django_celery_results_groupresult",
}


def _is_django(backend: object) -> bool:
    """Whether *backend* names that of django-celery-results; it is not imported."""
    if isinstance(backend, type):
        names = [f"{cls.__module__}.{cls.__name__}" for cls in backend.__mro__]
    else:
        names = [str(backend).replace(":", ".")]
    return "django-db" in names or any(
        re.fullmatch(r"django_celery_results\.backends\..*\bDatabaseBackend", name)
        for name in names
    )


def _url(key: str, value: object) -> Dsn:
    return parse_dsn(value, setting=key)


def _flag(key: str, value: object) -> bool:
    # "false", from an environment variable, is a true value in Python.
    if not isinstance(value, bool):
        raise _wrong(key, value, "True or False")
    return value


def _seconds(key: str, value: object) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_duration(seconds) or not seconds:
        raise _wrong(key, value, "a positive number of seconds or a timedelta")
    return float(seconds)


def _count(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(key, value, "a whole number, 1 or more")
    return value


#: Signals that neither Celery nor Python needs, and that do not report an error.
_FREE_SIGNALS: Final = ("SIGURG", "SIGUSR2", "SIGWINCH", "SIGIO")


def _signal(key: str, value: object) -> int:
    for name in _FREE_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and value in (name, number) and value is not True:
            return signal.Signals(number)
    if isinstance(value, int) and _is_real_time(value):
        return int(value)
    names = ", ".join(_FREE_SIGNALS)
    raise _wrong(key, value, f"{names} or the number of a real-time signal")


def _is_real_time(number: int) -> bool:
    first, last = (getattr(signal, f"SIGRT{end}", 0) for end in ("MIN", "MAX"))
    return 0 < first <= number <= last


def _timing(key: str, value: object) -> Timing:
    if not isinstance(value, Timing):
        raise _wrong(key, value, "an aioabort.timing.Timing")
    return value


#: The check of each setting, by its name without ``aioabort_``, as in Settings.
_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "dsn": _url,
    "listen_dsn": _url,
    "notify": _flag,
    "poll_interval": _seconds,
    "pool_max_size": _count,
    "request_expires": _seconds,
    "create_tables": _flag,
    "interrupt_signal": _signal,
    "timing": _timing,
}


#: A setting of aioabort.django, which Celery sees if it is configured with Django's.
_ALIAS_OF_DJANGO: Final = "AIOABORT_DATABASE"


def _wrong(key: str, value: object, wanted: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{key} must be {wanted}, not {describe(value)}")


def _refuse_unknown_keys(app: Celery) -> None:
    app.conf.finalize()
    namespace: str = getattr(app.conf, "prefix", None) or ""
    # With a namespace, Celery reads the plain key and, in its case, NAMESPACE_KEY.
    prefix = namespace + ("AIOABORT_" if namespace.isupper() else "aioabort_")
    spelling = {
        name: prefix + (name.upper() if prefix.isupper() else name) for name in _CHECKS
    }
    read = {
        _ALIAS_OF_DJANGO,
        *spelling.values(),
        *(f"aioabort_{name}" for name in _CHECKS),
    }
    for key in cast("Iterable[str]", app.conf):
        bare = key.lower().removeprefix((namespace or "celery_").lower())
        if bare.startswith("aioabort_") and key not in read:
            close = get_close_matches(bare.removeprefix("aioabort_"), _CHECKS, n=1)
            guess = f"; did you mean {spelling[close[0]]!r}?" if close else ""
            raise ImproperlyConfigured(f"aioabort has no setting {key!r}{guess}")


def _result_backend(app: Celery) -> tuple[str, object]:
    """Return the setting that names the result backend, and its value."""
    backend = cast("object", app.backend_cls or app.conf.result_backend)
    is_url = isinstance(backend, str) and "://" in backend
    is_other = _is_django(backend) or (
        backend in BACKEND_ALIASES and backend not in {"database", "db"}
    )
    # A class, or an alias that is not Celery's own, may be a subclass of the database
    # backend, too. No other backend uses database_url.
    if not backend or is_url or is_other or not app.conf.database_url:
        return "result_backend", backend
    return "database_url", app.conf.database_url


def _dsn_of_results(app: Celery, setting: str, results: object) -> Dsn:
    if is_postgresql(results):
        return parse_dsn(results, setting=setting)
    for provider in _dsn_providers:
        return provider()
    # Only the scheme: a password may follow.
    text = str(getattr(results, "__name__", results or "disabled"))
    name = re.sub(r"[^\w.+-].*", "", text, flags=re.DOTALL)
    raise ImproperlyConfigured(
        "aioabort needs PostgreSQL: the result backend is "
        f"{name!r} and aioabort_dsn is not set; {_remedy(app)}"
    )


def _remedy(app: Celery) -> str:
    # The name of the app that Celery makes for a thread without a current app.
    if app.main == "default":
        return (
            "the app is Celery's own 'default', because Celery's current app is per "
            "thread: pass app=, or call set_default() on your app"
        )
    return (
        "add app.conf.aioabort_dsn = 'postgresql://user@host/database' "
        f"to the app {app.main!r}"
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
        raise _wrong(key, names, "a dict of names such as {'task': 'name'}")
    return name
