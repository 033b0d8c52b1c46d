import signal
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from celery.backends.database import DatabaseBackend
from celery.exceptions import ImproperlyConfigured

from aioabort.dsn import parse_dsn
from aioabort.settings import Settings, read_settings
from aioabort.timing import Timing

URL = "postgresql://user@host/database"
DSN = parse_dsn(URL, setting="aioabort_dsn")


def make_app(**settings: Any) -> Celery:
    return Celery("test", set_as_current=False, **settings)


def settings_of(**settings: Any) -> Settings:
    return read_settings(make_app(**{"aioabort_dsn": URL} | settings))


def refusal(app: Celery) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings(app)
    return str(caught.value)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)


def test_one_dsn_is_enough() -> None:
    """Everything but the DSN has a default."""
    settings = settings_of()

    assert settings == Settings(dsn=DSN, listen_dsn=DSN, results_in_dsn=False)


def test_settings_can_be_a_key() -> None:
    """Settings that are the same are one key, others are another."""
    found = {settings_of(), settings_of(), settings_of(aioabort_notify=False)}

    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "listen_dsn",
            "postgresql://direct",
            parse_dsn("postgres://direct", setting="x"),
        ),
        ("notify", False, False),
        ("poll_interval", 5, 5.0),
        ("poll_interval", 0.1, 0.1),
        ("poll_interval", None, 1.0),
        ("pool_max_size", 1, 1),
        ("request_expires", 3600, 3600.0),
        ("request_expires", timedelta(days=2), 172_800.0),
        ("create_tables", False, False),
        ("interrupt_signal", "SIGUSR2", signal.SIGUSR2),
        ("interrupt_signal", signal.SIGWINCH, signal.SIGWINCH),
        ("interrupt_signal", int(signal.SIGURG), signal.SIGURG),
        ("interrupt_signal", signal.SIGRTMIN + 1, signal.SIGRTMIN + 1),
        ("timing", Timing(heartbeat=1), Timing(heartbeat=1)),
    ],
)
def test_settings_are_read(name: str, value: object, expected: object) -> None:
    """Each key changes its own setting; None counts as not set."""
    settings = settings_of(**{f"aioabort_{name}": value})

    assert getattr(settings, name) == expected
    assert type(getattr(settings, name)) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aioabort_notify", "false"),
        ("aioabort_notify", 1),
        ("aioabort_create_tables", "yes"),
        ("aioabort_timing", {"heartbeat": 1}),
        ("aioabort_poll_interval", 0),
        ("aioabort_poll_interval", -1.0),
        ("aioabort_poll_interval", float("inf")),
        ("aioabort_poll_interval", float("nan")),
        ("aioabort_poll_interval", 1e12),
        ("aioabort_poll_interval", "1"),
        ("aioabort_poll_interval", True),
        ("aioabort_interrupt_signal", "USR2"),
        ("aioabort_interrupt_signal", "SIGUSR1"),
        ("aioabort_interrupt_signal", signal.SIGKILL),
        ("aioabort_interrupt_signal", 0),
        ("aioabort_interrupt_signal", True),
        ("aioabort_interrupt_signal", ["SIGURG"]),
        ("aioabort_pool_max_size", 0),
        ("aioabort_pool_max_size", 2.0),
        ("aioabort_pool_max_size", "10"),
        ("aioabort_pool_max_size", True),
        ("aioabort_request_expires", timedelta(0)),
        ("aioabort_request_expires", "30 days"),
        ("database_table_names", "tasks"),
        ("database_table_names", {"task": 5}),
        ("database_table_schemas", ["task"]),
    ],
)
def test_values_that_cannot_work_are_refused(key: str, value: object) -> None:
    """The message names the key and the value."""
    message = refusal(make_app(**{"aioabort_dsn": URL, key: value}))

    assert message.startswith(f"{key} must be ")
    assert message.endswith(f", not {value!r}")


def test_an_int_that_python_does_not_print_is_refused() -> None:
    """Python refuses to print an int of 5,000 digits; the message does without."""
    message = refusal(make_app(aioabort_dsn=URL, aioabort_poll_interval=10**5_000))

    assert message.endswith("a timedelta, not a huge int")


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), True, "1", None])
def test_timing_takes_durations_only(value: Any) -> None:
    """The message names the field and the value."""
    with pytest.raises(
        ImproperlyConfigured, match=rf"Timing\.heartbeat must be .*, not {value!r}$"
    ):
        Timing(heartbeat=value)


@pytest.mark.parametrize("key", ["aioabort_dsn", "aioabort_listen_dsn"])
def test_unusable_dsns_are_refused_with_their_key(key: str) -> None:
    """Both DSNs are checked, and neither is shown."""
    settings = {"aioabort_dsn": URL, key: "redis://:s3cret@host"}

    message = refusal(make_app(**settings))

    assert message.startswith(f"{key}: ")
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": f"db+{URL}"},
        {"backend": "aioabort+postgresql+psycopg://user@host/database"},
        {"result_backend": "db+postgresql+psycopg://user@host/database"},
        {"backend": "database", "database_url": URL},
        {"backend": "db", "database_url": f"db+{URL}"},
        {"backend": "aioabort", "database_url": URL},
        {"backend": "celery.backends.database:DatabaseBackend", "database_url": URL},
        {"backend": DatabaseBackend, "database_url": URL},
    ],
)
def test_the_result_backend_is_the_default(settings: dict[str, Any]) -> None:
    """Results in PostgreSQL need no second URL, however they are configured."""
    found = read_settings(make_app(**settings))

    assert found == Settings(
        dsn=DSN,
        listen_dsn=DSN,
        results_in_dsn=True,
        stores_results=str(settings.get("backend", "")).startswith("aioabort"),
    )


def test_a_backend_of_a_subclass_is_the_default() -> None:
    """Celery lets backend_cls win over the configuration."""

    class App(Celery):
        backend_cls = f"db+{URL}"

    assert read_settings(App(backend="redis://", set_as_current=False)).dsn == DSN


def test_a_backend_in_the_environment_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery lets CELERY_RESULT_BACKEND win over the configuration."""
    monkeypatch.setenv("CELERY_RESULT_BACKEND", f"db+{URL}")

    assert read_settings(make_app(backend="redis://")).dsn == DSN


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "disabled"),
        ({"backend": "disabled"}, "disabled"),
        ({"backend": "rpc://"}, "rpc"),
        ({"backend": "redis://:s3cret@host/0"}, "redis"),
        ({"backend": "db+sqlite:///s3cret"}, "db+sqlite"),
        ({"backend": "db+mysql://user:s3cret@host/db"}, "db+mysql"),
        ({"backend": "database"}, "database"),
        ({"backend": "database", "database_url": "sqlite:///s3cret"}, "sqlite"),
        ({"backend": "redis", "database_url": URL}, "redis"),
        ({"backend": "redis://host", "database_url": URL}, "redis"),
        ({"backend": DatabaseBackend}, "DatabaseBackend"),
    ],
)
def test_other_backends_need_a_dsn(settings: dict[str, Any], name: str) -> None:
    """The message says which backend it is, no more of its URL, and what to add."""
    assert refusal(make_app(**settings)) == (
        "aioabort needs PostgreSQL: the result backend is"
        f" {name!r} and aioabort_dsn is not set; add app.conf.aioabort_dsn ="
        " 'postgresql://user@host/database' to the app 'test'"
    )


@pytest.mark.parametrize(
    ("settings", "in_dsn"),
    [
        ({"backend": "db+postgresql://elsewhere?tcp_user_timeout=1"}, True),
        ({"backend": "database", "database_url": "postgresql://elsewhere"}, True),
        ({"backend": "redis://"}, False),
        ({}, False),
    ],
)
def test_a_dsn_wins_over_the_result_backend(
    settings: dict[str, Any], *, in_dsn: bool
) -> None:
    """The backend's URL is then not translated, only its kind is noted."""
    found = settings_of(**settings)

    assert found.dsn == DSN
    assert found.results_in_dsn is in_dsn


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"backend": f"db+{URL}?tcp_user_timeout=1"}, "result_backend"),
        (
            {"backend": "database", "database_url": f"{URL}?tcp_user_timeout=1"},
            "database_url",
        ),
    ],
)
def test_unusable_backends_are_refused_with_their_key(
    settings: dict[str, Any], setting: str
) -> None:
    """The message names the setting in which the URL stands."""
    assert refusal(make_app(**settings)).startswith(f"{setting}: ")


class OwnBackend:
    """A subclass of what is no module of these tests."""


OwnBackend.__module__ = "django_celery_results.backends.database"
OwnBackend.__qualname__ = OwnBackend.__name__ = "DatabaseBackend"


@pytest.mark.parametrize(
    "backend",
    [
        "django-db",
        "django_celery_results.backends:DatabaseBackend",
        "django_celery_results.backends.DatabaseBackend",
        "django_celery_results.backends.database:DatabaseBackend",
        OwnBackend,
        type("Derived", (OwnBackend,), {}),
    ],
)
def test_results_of_django_are_known_by_the_backend(backend: object) -> None:
    """The alias, the path of the class, the class and its subclasses name it."""
    settings = settings_of(result_backend=backend, database_url="db+sqlite://")
    assert settings.results_in_orm
    assert settings.results_in_dsn
    assert settings.task_table == "django_celery_results_taskresult"


@pytest.mark.parametrize(
    "backend",
    ["redis://host", "django-cache", "django_celery_results.backends:CacheBackend"],
)
def test_other_backends_are_not_django(backend: str) -> None:
    """Django's cache has no table."""
    settings = settings_of(result_backend=backend)
    assert not settings.results_in_orm
    assert not settings.results_in_dsn


def test_tables_are_those_of_celery() -> None:
    """Name and schema of the table of tasks come from Celery's own settings."""
    settings = settings_of(
        database_table_names={"task": "jobs", "group": "groups"},
        database_table_schemas={"task": "queue"},
    )

    assert (settings.task_table, settings.schema) == ("jobs", "queue")


def test_tables_of_groups_do_not_matter() -> None:
    """Without a name for tasks, Celery uses its own."""
    settings = settings_of(
        database_table_names={"group": "groups"}, database_table_schemas={}
    )

    assert (settings.task_table, settings.schema) == ("celery_taskmeta", None)


@pytest.mark.parametrize(
    ("namespace", "prefix"),
    [(None, "aioabort_"), ("CELERY", "CELERY_AIOABORT_"), ("queue", "queue_aioabort_")],
)
def test_settings_are_found_in_a_namespace(namespace: str | None, prefix: str) -> None:
    """Keys are spelt as Celery's own, with the namespace and in its case."""
    upper = prefix.isupper()
    module = ModuleType("config")
    setattr(module, f"{prefix}{'DSN' if upper else 'dsn'}", URL)
    setattr(module, f"{prefix}{'NOTIFY' if upper else 'notify'}", False)
    app = make_app()
    app.config_from_object(module, namespace=namespace)

    settings = read_settings(app)

    assert settings.dsn == DSN
    assert settings.notify is False


@pytest.mark.parametrize(
    ("namespace", "key", "hint"),
    [
        (None, "aioabort_pol_interval", "aioabort_poll_interval"),
        (None, "AIOABORT_NOTIFY", "aioabort_notify"),
        (None, "CELERY_AIOABORT_NOTIFY", "aioabort_notify"),
        ("CELERY", "CELERY_AIOABORT_LISTENDSN", "CELERY_AIOABORT_LISTEN_DSN"),
        ("CELERY", "AIOABORT_NOTIFY", "CELERY_AIOABORT_NOTIFY"),
        ("CELERY", "celery_aioabort_notify", "CELERY_AIOABORT_NOTIFY"),
        ("queue", "queue_aioabort_notfy", "queue_aioabort_notify"),
    ],
)
def test_keys_that_nobody_reads_are_refused(
    namespace: str | None, key: str, hint: str
) -> None:
    """The error about a misspelt key suggests the right one."""
    app = make_app()
    app.config_from_object({key: 1}, namespace=namespace)
    app.conf.update(aioabort_dsn=URL)

    assert refusal(app) == f"aioabort has no setting {key!r}; did you mean {hint!r}?"


def test_keys_like_no_other_are_refused() -> None:
    """The error about a key that resembles none suggests none."""
    message = refusal(make_app(aioabort_dsn=URL, aioabort_xyzzy=1))

    assert message == "aioabort has no setting 'aioabort_xyzzy'"


def test_other_apps_in_the_same_configuration_do_not_matter() -> None:
    """Keys of other namespaces and other packages are ignored."""
    app = make_app()
    app.config_from_object(
        {"ONE_AIOABORT_DSN": URL, "TWO_AIOABORT_ANY": 1, "my_aioabort": 1},
        namespace="ONE",
    )

    assert read_settings(app).dsn == DSN


def test_changes_before_the_configuration_is_loaded_count() -> None:
    """A value set on the app wins over one from its configuration."""
    app = make_app()
    app.config_from_object({"aioabort_dsn": "postgresql://other"})
    app.conf.aioabort_dsn = URL

    assert read_settings(app).dsn == DSN


def test_the_backend_is_left_alone() -> None:
    """Reading the settings makes no backend, which could connect."""

    class App(Celery):
        def _get_backend(self) -> Any:
            raise AssertionError

    assert read_settings(App(backend=f"db+{URL}", set_as_current=False)).dsn == DSN
