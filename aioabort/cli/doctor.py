"""``doctor``: check the set-up, and say what is wrong and how to mend it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from celery import Celery

from aioabort.cli.command import CommandOutput, ExitCode, command
from aioabort.orm import with_orm_tables
from aioabort.postgres.diagnostics import Diagnosis, diagnose
from aioabort.settings import Settings, read_settings

#: Usage of the notification queue above which doctor warns. NOTIFY fails at 1.0.
QUEUE_USAGE_LIMIT = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    is_well: bool
    text: str


@command("doctor")
async def doctor(app: Celery) -> CommandOutput:
    """Check the server, the table, the privileges and the notifications.

    An abort is tried and rolled back. Exit code 1: there is a problem.
    """
    settings = await with_orm_tables(app, read_settings(app))
    diagnosis = await diagnose(settings)
    findings = list(interpret(diagnosis, settings))
    is_well = all(finding.is_well for finding in findings)
    data = {
        "is_well": is_well,
        "findings": [asdict(finding) for finding in findings],
        **asdict(diagnosis),
    }
    lines = (f"{'ok ' if f.is_well else 'BAD'}  {f.text}" for f in findings)
    return CommandOutput(data, lines, ExitCode.DONE if is_well else ExitCode.NO)


def interpret(diagnosis: Diagnosis, settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each part of *diagnosis*."""
    yield _good(f"PostgreSQL {diagnosis.server_version} at {settings.dsn}")
    if diagnosis.is_standby:
        yield _bad("it is a standby: target_session_attrs=read-write finds the primary")
    if diagnosis.is_pooled:
        yield _good("behind a connection pooler")
    yield _table(diagnosis, settings)
    if diagnosis.why_elsewhere is not None:
        yield _bad(
            "results are read by Celery's backend, not from PostgreSQL: "
            f"{diagnosis.why_elsewhere}"
        )
    yield from _other_tables(diagnosis)
    yield _privileges(diagnosis)
    yield from _aborts(diagnosis)
    yield _notifications(diagnosis, settings)
    if diagnosis.queue_usage > QUEUE_USAGE_LIMIT:
        yield _bad(
            f"PostgreSQL's queue of notifications is {diagnosis.queue_usage:.0%} full: "
            "a session listens inside a transaction that does not end"
        )
    yield from _requests(diagnosis)


def _good(text: str) -> Finding:
    return Finding(is_well=True, text=text)


def _bad(text: str) -> Finding:
    return Finding(is_well=False, text=text)


def _table(diagnosis: Diagnosis, settings: Settings) -> Finding:
    view = diagnosis.views[0]
    name = f"the table {view.table}"
    if diagnosis.missing_columns:
        return _bad(
            f"{name} has no columns {', '.join(diagnosis.missing_columns)}: "
            "have its owner add them as in init-db --sql"
        )
    if diagnosis.has_table:
        return _good(f"{name} exists (oid {view.oid})")
    if settings.create_tables and diagnosis.may_create:
        return _good(f"{name} will be created at first use")
    return _bad(f"{name} is missing: have its owner run init-db")


def _other_tables(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield what processes with another address or ``search_path`` may use instead."""
    used = diagnosis.views[0]
    for schema in diagnosis.stray_tables:
        yield _bad(
            f"schema {schema!r} has a table of abort requests, too; processes that use "
            f"it and those that use {used.table} lose each other's aborts: drop it"
        )
    for view in diagnosis.views[1:]:
        same = (view.database, view.oid) == (used.database, used.oid)
        yield (_good if same else _bad)(
            f"{view.setting} leads to the same table"
            if same
            else f"{view.setting} leads to {view.table} (oid {view.oid}) in database "
            f"{view.database!r} at {view.address}, but {used.setting} to {used.table} "
            f"(oid {used.oid}) in {used.database!r} at {used.address}"
        )


def _aborts(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Yield what the roles found when they tried an abort."""
    if diagnosis.is_standby:
        return
    for view in diagnosis.views:
        if view.failure is not None:
            yield _bad(f"an abort by role {view.role!r} fails: {view.failure}")
        elif view.isolation != "read committed":
            yield _bad(
                f"role {view.role!r} runs {view.isolation} transactions by default: "
                "statements that meet fail, and are repeated; ALTER ROLE … SET "
                "default_transaction_isolation = 'read committed'"
            )
        else:
            yield _good(f"an abort by role {view.role!r} works, and was rolled back")


def _privileges(diagnosis: Diagnosis) -> Finding:
    if diagnosis.missing_rights:
        return _bad(f"the role lacks {', '.join(diagnosis.missing_rights)}")
    return _good("the role has all privileges that it needs")


def _notifications(diagnosis: Diagnosis, settings: Settings) -> Finding:
    found = diagnosis.notifications
    if found.lag is not None:
        return _good(f"notify: notifications arrive within {found.lag * 1000:.1f} ms")
    text = f"poll only, every {settings.poll_interval:g} s: {found.reason}"
    return _bad(text) if settings.notify else _good(text)


def _requests(diagnosis: Diagnosis) -> Iterator[Finding]:
    requests = diagnosis.requests
    if requests is None:
        return
    text = f"{requests.pending} abort requests pending"
    if requests.oldest_unseen is not None:
        text += f", {requests.unseen} unseen for up to {requests.oldest_unseen:.0f} s"
    yield _good(text)
    if requests.expired:
        yield _good(f"{requests.expired} abort requests have expired: run cleanup")
