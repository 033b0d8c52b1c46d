"""``doctor``: what is well, what is not, and what to do about it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from celery import Celery

from aioabort.cli.running import Answer, Exit, command
from aioabort.postgres.checkup import Checkup, check_up
from aioabort.postgres.schema import tables_of
from aioabort.settings import Settings, read_settings

#: From here on, the queue of notifications is about to stop whoever notifies.
FULL = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report, and whether all is well."""

    is_well: bool
    text: str


@command("doctor")
async def doctor(app: Celery) -> Answer:
    """Find out what is not well.

    It looks at the server, the table, the rights and the notifications, and changes
    nothing. Exit code 1: something is not well.
    """
    settings = read_settings(app)
    checkup = await check_up(settings)
    findings = list(judge(checkup, settings))
    is_well = all(finding.is_well for finding in findings)
    facts = {"is_well": is_well, "findings": findings, **asdict(checkup)}
    lines = (f"{'ok ' if f.is_well else 'BAD'}  {f.text}" for f in findings)
    return Answer(facts, lines, Exit.DONE if is_well else Exit.NO)


def judge(checkup: Checkup, settings: Settings) -> Iterator[Finding]:
    """Yield what each fact means."""
    yield _good(f"PostgreSQL {checkup.server_version} at {settings.dsn}")
    if checkup.is_standby:
        yield _bad("it is a standby: target_session_attrs=read-write finds the primary")
    if checkup.is_pooled:
        yield _good("behind a connection pooler")
    yield _table(checkup, settings)
    yield _rights(checkup)
    yield _notifications(checkup, settings)
    if checkup.queue_usage > FULL:
        yield _bad(
            f"PostgreSQL's queue of notifications is {checkup.queue_usage:.0%} full: "
            "somebody listens inside a transaction"
        )
    yield from _requests(checkup)


def _good(text: str) -> Finding:
    return Finding(is_well=True, text=text)


def _bad(text: str) -> Finding:
    return Finding(is_well=False, text=text)


def _table(checkup: Checkup, settings: Settings) -> Finding:
    name = f"the table {tables_of(settings).request}"
    if checkup.missing_columns:
        return _bad(f"{name} has no columns {', '.join(checkup.missing_columns)}")
    if checkup.has_table:
        return _good(f"{name} is there")
    if settings.create_tables and checkup.may_create:
        return _good(f"{name} will be created at first use")
    return _bad(f"{name} is missing: have its owner run init-db")


def _rights(checkup: Checkup) -> Finding:
    if checkup.missing_rights:
        return _bad(f"the role lacks {', '.join(checkup.missing_rights)}")
    return _good("the role has all rights that it needs")


def _notifications(checkup: Checkup, settings: Settings) -> Finding:
    found = checkup.notifications
    if found.lag is not None:
        return _good(f"notify: notifications arrive within {found.lag * 1000:.1f} ms")
    text = f"poll only, every {settings.poll_interval:g} s: {found.reason}"
    return _bad(text) if settings.notify else _good(text)


def _requests(checkup: Checkup) -> Iterator[Finding]:
    requests = checkup.requests
    if requests is None:
        return
    text = f"{requests.pending} requests pending"
    if requests.oldest_unseen is not None:
        text += f", {requests.unseen} unseen for up to {requests.oldest_unseen:.0f} s"
    yield _good(text)
    if requests.expired:
        yield _good(f"{requests.expired} requests have expired: run cleanup")
