"""Each command, with a working set-up and with each kind of broken one."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from aioabort.cli.group import main
from tests.integration.conftest import Stranger
from tests.support.apps import MakeApp
from tests.support.databases import celery_url, query

#: Arguments with which each command connects to PostgreSQL.
COMMANDS = {
    "abort": ["abort", "some-id"],
    "abort-before": ["abort", "--before", "1h"],
    "abort-wait": ["abort", "some-id", "--wait"],
    "cleanup": ["cleanup"],
    "doctor": ["doctor"],
    "init-db": ["init-db"],
    "list": ["list"],
    "status": ["status", "some-id"],
    "watch": ["watch"],
    "watch-id": ["watch", "some-id"],
}
every_command = pytest.mark.parametrize("name", COMMANDS)


def run(app: Celery, *arguments: str) -> Result:
    """Run one command as ``celery -A proj aioabort`` does."""
    return CliRunner().invoke(main, arguments, obj=SimpleNamespace(app=app))


def output_json(app: Celery, *arguments: str) -> Any:
    """Run a command with ``--json``; return its output if it succeeds."""
    result = run(app, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def finish(dsn: str, task_id: str, state: str) -> None:
    """Store a state of a task, as Celery would."""
    query(
        dsn,
        "INSERT INTO celery_taskmeta (id, task_id, status, date_done)"
        " VALUES (nextval('task_id_sequence'), %s, %s, now() AT TIME ZONE 'utc')",
        task_id,
        state,
    )


def test_abort(app: Celery, dsn: str) -> None:
    """The abort request is stored with all options, and the command prints so."""
    said = ("--reason", "tenant deleted", "--by", "ann", "--grace", "30")
    result = run(app, "abort", "some-id", *said)

    assert result.exit_code == 0
    assert result.stdout == "some-id  requested\n"
    [row] = query(
        dsn, "SELECT task_id, reason, requested_by, kill_at FROM aioabort_request"
    )
    assert row[:3] == ("some-id", "tenant deleted", "ann")
    assert row[3] is not None


def test_abort_again(app: Celery) -> None:
    """The first abort request stays and is printed; the exit code is 0."""
    run(app, "abort", "some-id", "--reason", "why", "--by", "ann")
    result = run(app, "abort", "some-id", "--by", "bob")

    assert result.exit_code == 0
    assert result.stdout == "some-id  already requested 0 s ago by ann: why\n"


def test_abort_of_several(app: Celery, dsn: str) -> None:
    """Each task has a receipt; one that had ended makes the exit code 1."""
    finish(dsn, "over", "SUCCESS")
    result = run(app, "abort", "one", "over", "two", "--json")

    assert result.exit_code == 1
    receipts = json.loads(result.stdout)
    assert [receipt["task_id"] for receipt in receipts] == ["one", "over", "two"]
    answers = [receipt["answer"] for receipt in receipts]
    assert answers == ["requested", "finished", "requested"]
    assert receipts[1]["state"] == "SUCCESS"
    assert datetime.fromisoformat(receipts[0]["request"]["requested_at"]).tzinfo
    assert run(app, "abort", "over").stdout == "over  already finished: SUCCESS\n"


@pytest.fixture
def extended(dsn: str, make_app: MakeApp) -> Celery:
    """An app with three tasks and their names stored; one has ended."""
    for age, name, state in [
        (2, "proj.mail", "RETRY"),
        (1, "proj.index", "SUCCESS"),
        (0, "proj.index", "STARTED"),
    ]:
        finish(dsn, f"id-{age}", state)
        query(
            dsn,
            "UPDATE celery_taskmeta SET name = %s, date_done = date_done - %s * interval"
            " '1 h' WHERE task_id = %s",
            name,
            age,
            f"id-{age}",
        )
    return make_app(dsn, result_extended=True)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--task", "proj.index"), ["id-0"]),
        (("--before", "90min"), ["id-2"]),
        (("--before", "90 min", "--task", "proj.index"), []),
        (("--before", "2999-01-01T00:00+01:00"), ["id-0", "id-2"]),
        (("--before", "2026-01-01"), []),
        (("--worker", "nowhere"), []),
        (("--queue", "nowhere"), []),
    ],
)
def test_abort_by_criteria(
    extended: Celery, options: tuple[str, ...], found: list[str]
) -> None:
    """A task must match all criteria; if no task does, the exit code is 1."""
    result = run(extended, "abort", *options, "--by", "ann", "--json")

    receipts = json.loads(result.stdout)
    assert [receipt["task_id"] for receipt in receipts] == found
    assert {receipt["request"]["requested_by"] for receipt in receipts} <= {"ann"}
    assert result.exit_code == (0 if found else 1)


class WaitingProgram:
    """``abort --wait`` as a program that has made its requests and now waits."""

    def __init__(self, program: "subprocess.Popen[str]", dsn: str) -> None:
        self.program = program
        self._dsn = dsn

    def settle(self, task_id: str, outcome: str) -> None:
        """Store the outcome of a task, as its worker does."""
        statement = (
            "UPDATE aioabort_request SET outcome = %s, outcome_at = now(),"
            " seen_at = now() WHERE task_id = %s"
        )
        query(self._dsn, statement, outcome, task_id)

    def read(self) -> str:
        """Return the next line of its output."""
        assert self.program.stdout is not None
        return self.program.stdout.readline()

    def end(self) -> tuple[int, str, str]:
        """Wait until it exits; return its exit code and the rest of its output."""
        output, errors = self.program.communicate()
        return self.program.returncode, output, errors


@pytest.fixture
def start_waiting(dsn: str, tmp_path: Path) -> Callable[..., WaitingProgram]:
    """Starts ``abort``, and returns when its abort request is stored."""

    def wait(*arguments: str) -> WaitingProgram:
        waiting = WaitingProgram(
            start(tmp_path, celery_url(dsn), "abort", *arguments), dsn
        )
        asked = "SELECT 1 FROM aioabort_request"
        while waiting.program.poll() is None and not query(dsn, asked):
            pass
        return waiting

    return wait


def test_abort_that_waits(start_waiting: Callable[..., WaitingProgram]) -> None:
    """Each outcome is printed as it comes; the exit code is 0 for all outcomes."""
    waiting = start_waiting("a", "b", "--wait")
    assert [waiting.read() for _ in "ab"] == ["a  requested\n", "b  requested\n"]
    waiting.settle("b", "aborted")
    assert waiting.read() == "b  aborted\n"
    waiting.settle("a", "returned")
    assert waiting.end() == (0, "a  returned\n", "")


def test_abort_that_waits_for_json(
    start_waiting: Callable[..., WaitingProgram], dsn: str
) -> None:
    """The outcomes are in the JSON; a task that had ended has none, and code 1."""
    finish(dsn, "over", "SUCCESS")
    waiting = start_waiting("a", "over", "--wait", "60", "--json")
    waiting.settle("a", "killed")
    code, output, errors = waiting.end()

    assert (code, errors) == (1, "")
    told = {each["task_id"]: each for each in json.loads(output)}
    assert (told["a"]["answer"], told["a"]["outcome"]) == ("requested", "killed")
    assert (told["over"]["answer"], told["over"]["outcome"]) == ("finished", None)


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_abort_that_waits_too_long(app: Celery, how: tuple[str, ...]) -> None:
    """The exit code is 5 after the timeout, and the abort requests remain."""
    result = run(app, "abort", "a", "--wait", "0.1", *how)
    assert result.exit_code == 5
    assert result.stderr == "Error: Task 'a' did not end within 0.1 s\n"
    if how:
        assert json.loads(result.stdout)[0]["outcome"] is None
    else:
        assert result.stdout == "a  requested\n"

    result = run(app, "abort", "a", "b", "--wait", "0", *how)
    assert result.exit_code == 5
    assert result.stderr.startswith("Error: 2 tasks did not end, the first: Task 'a'")
    assert result.stderr.count("\n") == 1


def test_abort_that_waits_and_is_interrupted(
    start_waiting: Callable[..., WaitingProgram],
) -> None:
    """Ctrl-C ends the wait with a line; the requests were printed before."""
    waiting = start_waiting("a", "--wait")
    assert waiting.read() == "a  requested\n"
    waiting.program.send_signal(signal.SIGINT)
    assert waiting.end() == (130, "", "Error: interrupted\n")


def test_abort_by_criteria_that_waits(extended: Celery) -> None:
    """``--wait`` waits for the tasks that the criteria find."""
    result = run(extended, "abort", "--task", "proj.index", "--wait", "0")
    assert (result.exit_code, result.stdout) == (5, "id-0  requested\n")


@pytest.mark.parametrize("seconds", ["soon", "some-id"])
def test_abort_with_a_wrong_wait(app: Celery, seconds: str, dsn: str) -> None:
    """The error names the option, and no abort request is stored."""
    result = run(app, "abort", "some-id", f"--wait={seconds}")
    assert result.exit_code == 2
    assert "'--wait'" in result.stderr
    assert query(dsn, "SELECT * FROM aioabort_request") == []


@pytest.mark.parametrize("arguments", [(), ("some-id", "--task", "proj.index")])
def test_abort_of_unclear_tasks(app: Celery, arguments: tuple[str, ...]) -> None:
    """Neither ids nor criteria, and both of them, are refused."""
    assert_one_line(run(app, "abort", *arguments), 2, "either by ids or by --task")


def test_abort_by_what_celery_does_not_store(app: Celery) -> None:
    """The error names result_extended; without it no task would be found."""
    result = run(app, "abort", "--task", "proj.index")
    assert_one_line(result, 2, "result_extended")
    assert "abort_where" not in result.stderr


@pytest.mark.parametrize("criterion", [("--task", "proj.index"), ("--before", "2h")])
def test_abort_by_criteria_where_results_are_elsewhere(
    make_app: MakeApp, dsn: str, criterion: tuple[str, str]
) -> None:
    """The error does not name result_extended, which would not help here."""
    app = make_app(dsn, aioabort_dsn=dsn)
    app.conf.update(result_backend="cache+memory://", result_backend_thread_safe=True)
    assert_one_line(run(app, "abort", *criterion), 2, "stores its results elsewhere")


@pytest.mark.parametrize("before", ["yesterday", "-1s", "9999999d", "1 week", ""])
def test_abort_with_a_wrong_before(app: Celery, before: str) -> None:
    """The error names the option and the formats that it accepts."""
    result = run(app, "abort", "--before", before)
    assert result.exit_code == 2
    assert "'--before'" in result.stderr
    assert "30min" in result.stderr


def test_list(app: Celery, dsn: str) -> None:
    """The newest comes first; ``--pending`` leaves out requests with an outcome."""
    for task_id in ("a", "b", "c"):
        run(app, "abort", task_id, "--by", "ann", "--reason", f"{task_id}\x1b[2J\n")
    query(
        dsn,
        "UPDATE aioabort_request SET seen_at = now(), seen_by = 'celery@host pid 1',"
        " outcome = 'aborted', outcome_at = now() WHERE task_id = 'b'",
    )

    assert [r["task_id"] for r in output_json(app, "list")] == ["c", "b", "a"]
    assert [r["task_id"] for r in output_json(app, "list", "--pending")] == ["c", "a"]
    assert [r["task_id"] for r in output_json(app, "list", "--limit", "1")] == ["c"]
    lines = run(app, "list").stdout.splitlines()
    assert " ".join(lines[0].split()) == "TASK REQUESTED AGE BY REASON SEEN BY OUTCOME"
    assert lines[2].split()[0] == "b"
    assert lines[2].endswith("celery@host pid 1  aborted")
    assert len(lines) == 4
    assert "\x1b" not in "".join(lines)


def test_status(app: Celery, dsn: str) -> None:
    """It prints the state, and each stage of the abort request."""
    run(app, "abort", "some-id", "--by", "ann", "--reason", "why", "--grace", "30")
    text = run(app, "status", "some-id").stdout
    assert text.startswith("some-id  ABORTED\nasked to stop 0 s ago by ann: why\n")
    assert "will be killed at" in text

    query(
        dsn,
        "UPDATE aioabort_request SET seen_at = requested_at + interval '12 ms',"
        " seen_by = 'celery@host pid 1', outcome = 'aborted',"
        " outcome_at = requested_at + interval '40 ms'",
    )
    query(dsn, "UPDATE celery_taskmeta SET status = 'REVOKED'")
    assert run(app, "status", "some-id").stdout.splitlines()[2:] == [
        "seen after 0.012 s by celery@host pid 1",
        "aborted after 0.040 s",
    ]
    told = output_json(app, "status", "some-id")
    assert (told["state"], told["is_finished"]) == ("REVOKED", True)
    assert told["request"]["outcome"] == "aborted"


def test_status_of_an_unknown_task(app: Celery) -> None:
    """The exit code is 1, as for a queued task."""
    result = run(app, "status", "some-id")

    assert result.exit_code == 1
    assert result.stdout == "some-id  PENDING\n"


def test_cleanup(app: Celery, dsn: str) -> None:
    """Expired requests are deleted, in batches; the others stay."""
    run(app, "abort", "kept")
    query(
        dsn,
        "INSERT INTO aioabort_request (task_id, expires_at)"
        " SELECT 'old-' || n, now() - interval '1 s' FROM generate_series(1, 2500) n",
    )

    assert output_json(app, "cleanup") == {"deleted": 2500}
    assert query(dsn, "SELECT task_id FROM aioabort_request") == [("kept",)]
    assert run(app, "cleanup").stdout == "0 abort requests deleted\n"


def test_init_db(empty_dsn: str, make_app: MakeApp) -> None:
    """The table is created even if aioabort_create_tables is False, and only once."""
    app = make_app(empty_dsn, aioabort_create_tables=False)

    assert output_json(app, "init-db") == {
        "table": '"public"."aioabort_request"',
        "created": True,
    }
    assert run(app, "init-db").stdout == '"public"."aioabort_request" already exists\n'


def test_printed_sql_creates_the_same_table(
    dsn: str, empty_dsn: str, make_app: MakeApp
) -> None:
    """The SQL creates the table that aioabort would create."""
    statements = run(make_app("postgresql://nowhere.invalid/x"), "init-db", "--sql")
    assert statements.exit_code == 0
    query(empty_dsn, statements.stdout)

    columns = (
        "SELECT column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_name = 'aioabort_request'"
        " ORDER BY ordinal_position"
    )
    indexes = (
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'aioabort_request'"
        " ORDER BY indexname"
    )
    for statement in (columns, indexes):
        assert query(dsn, statement) == query(empty_dsn, statement) != []


def test_doctor(app: Celery, dsn: str) -> None:
    """If all is well, it prints the mode, the latency and the pending requests."""
    run(app, "abort", "some-id")
    query(
        dsn,
        "INSERT INTO aioabort_request (task_id, expires_at, outcome)"
        " VALUES ('old', now() - interval '1 s', 'aborted')",
    )
    result = run(app, "doctor")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok   ") for line in lines)
    assert lines[0].startswith("ok   PostgreSQL ")
    assert re.fullmatch(r"ok   notify: notifications arrive within [\d.]+ ms", lines[4])
    assert lines[5].startswith("ok   1 abort requests pending, 1 unseen for up to ")
    assert lines[6] == "ok   1 abort requests have expired: run cleanup"
    told = output_json(app, "doctor")
    assert told["is_well"] is True
    assert told["notifications"]["mode"] == "notify"
    assert told["requests"]["pending"] == 1


def test_doctor_leaves_the_table_to_be_created(
    empty_dsn: str, make_app: MakeApp
) -> None:
    """It changes nothing, and says who will create the table, or must create it."""
    result = run(make_app(empty_dsn), "doctor")
    assert result.exit_code == 0
    assert "will be created at first use" in result.stdout
    assert query(empty_dsn, "SELECT to_regclass('aioabort_request')") == [(None,)]

    result = run(make_app(empty_dsn, aioabort_create_tables=False), "doctor")
    assert result.exit_code == 1
    assert "BAD  the table" in result.stdout
    assert "init-db" in result.stdout


def test_doctor_of_an_older_table(app: Celery, dsn: str) -> None:
    """It names the missing column."""
    query(dsn, "ALTER TABLE aioabort_request DROP COLUMN traceparent")
    result = run(app, "doctor")
    assert result.exit_code == 1
    assert "has no columns traceparent" in result.stdout


def test_doctor_without_notifications(make_app: MakeApp, dsn: str) -> None:
    """Polling is no problem if aioabort_notify is False."""
    app = make_app(dsn, aioabort_notify=False, aioabort_poll_interval=0.5)
    result = run(app, "doctor")
    assert result.exit_code == 0
    assert "ok   poll only, every 0.5 s: aioabort_notify is False" in result.stdout


def test_doctor_where_notifications_do_not_arrive(
    make_app: MakeApp, dsn: str, empty_dsn: str
) -> None:
    """As with a pooler: the listener's database gets no notification of ours."""
    result = run(make_app(dsn, aioabort_listen_dsn=empty_dsn), "doctor")
    assert result.exit_code == 1
    assert "BAD  poll only, every 1 s: no notification arrived in time" in result.stdout


def test_doctor_where_the_listener_cannot_connect(make_app: MakeApp, dsn: str) -> None:
    """It is a finding, not the error for an unreachable database."""
    app = make_app(dsn, aioabort_listen_dsn="postgresql://a:secret@127.0.0.1:1/x")
    result = run(app, "doctor")
    assert result.exit_code == 1
    assert "BAD  poll only, every 1 s: LISTEN fails: " in result.stdout
    assert "secret" not in result.output


def assert_one_line(result: Result, code: int, text: str) -> None:
    """Check the exit code, and that one error line was printed and nothing else."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


@pytest.mark.parametrize("task_id", ["", "x" * 156, "nul\0"])
@pytest.mark.parametrize("name", ["abort", "status", "watch"])
def test_wrong_id(app: Celery, dsn: str, name: str, task_id: str) -> None:
    """It is refused, and nothing is stored."""
    assert_one_line(run(app, name, task_id), 2, "task id")
    assert query(dsn, "SELECT * FROM aioabort_request") == []


@pytest.mark.parametrize(
    "option", [("--reason", "x" * 5000), ("--by", "\0"), ("--grace", "-1")]
)
def test_wrong_option(app: Celery, option: tuple[str, str]) -> None:
    """The error names the option."""
    assert_one_line(run(app, "abort", "some-id", *option), 2, option[0][2:])


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("abort", "some-id"), "--grace"),
        (("abort", "some-id"), "--wait"),
        (("watch",), "--interval"),
    ],
)
def test_option_that_is_no_number(
    app: Celery, dsn: str, command: tuple[str, ...], option: str
) -> None:
    """A NaN is refused before anything is stored."""
    result = run(app, *command, option, "nan")
    assert result.exit_code == 2
    assert option.strip("-") in result.output
    assert query(dsn, "SELECT * FROM aioabort_request") == []


@every_command
def test_wrong_dsn(make_app: MakeApp, name: str) -> None:
    """The error names the setting, and shows no part of the password."""
    app = make_app("postgresql://ann:se@cret@host/db?x=1")
    result = run(app, *COMMANDS[name])
    assert_one_line(result, 2, "result_backend: ")
    assert "cret" not in result.output


@every_command
def test_no_postgresql(make_app: MakeApp, name: str) -> None:
    """Without a PostgreSQL URL in the settings, the error says so."""
    app = make_app("postgresql://host/db")
    app.conf.result_backend = "redis://:secret@host"
    result = run(app, *COMMANDS[name])
    assert_one_line(result, 2, "needs PostgreSQL")
    assert "secret" not in result.output


@every_command
def test_database_down(make_app: MakeApp, name: str) -> None:
    """The exit code 4 says that a retry may succeed."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    app = make_app(f"postgresql://ann:secret@127.0.0.1:{port}/db")
    result = run(app, *COMMANDS[name])
    assert_one_line(result, 4, "PostgreSQL is away")
    assert "secret" not in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"doctor", "init-db"}))
def test_no_table(empty_dsn: str, make_app: MakeApp, name: str) -> None:
    """If aioabort may not create the table, the error names it."""
    app = make_app(empty_dsn, aioabort_create_tables=False)
    assert_one_line(run(app, *COMMANDS[name]), 3, '"aioabort_request" is missing')


def test_doctor_of_a_stranger(dsn: str, make_app: MakeApp, stranger: Stranger) -> None:
    """It names the missing privileges; cleanup's are not required."""
    app = make_app(stranger.dsn(dsn))
    query(dsn, f"GRANT SELECT ON celery_taskmeta TO {stranger.role}")
    result = run(app, "doctor")

    assert result.exit_code == 1
    [line] = [text for text in result.stdout.splitlines() if "lacks" in text]
    assert line == (
        'BAD  the role lacks SELECT on "public"."aioabort_request",'
        ' INSERT on "public"."aioabort_request",'
        ' UPDATE on "public"."aioabort_request",'
        ' INSERT on "public"."celery_taskmeta",'
        ' UPDATE on "public"."celery_taskmeta",'
        ' USAGE on "public"."task_id_sequence"'
    )
    assert stranger.password not in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"doctor", "init-db"}))
def test_no_rights(dsn: str, make_app: MakeApp, stranger: Stranger, name: str) -> None:
    """The error quotes PostgreSQL."""
    app = make_app(stranger.dsn(dsn))
    result = run(app, *COMMANDS[name])
    assert_one_line(result, 3, "permission denied")
    assert stranger.password not in result.output


def test_no_right_to_create(
    empty_dsn: str, make_app: MakeApp, stranger: Stranger
) -> None:
    """The error quotes PostgreSQL if the role may not create the table."""
    query(empty_dsn, "REVOKE CREATE ON SCHEMA public FROM public")
    app = make_app(stranger.dsn(empty_dsn))
    assert_one_line(run(app, "init-db"), 3, "permission denied")


def test_trouble_of_celerys_own_backend(app: Celery, tmp_path: Path) -> None:
    """An unknown exception is printed in one line, with its type."""
    app.conf.aioabort_dsn = app.conf.result_backend
    app.conf.result_backend = f"db+sqlite:///{tmp_path}/no/such/folder/db"
    assert_one_line(run(app, "list"), 3, "OperationalError")


PROJECT = """
from celery import Celery
app = Celery("proj", backend={backend!r})
"""


def start(folder: Path, backend: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start ``celery -A proj aioabort``, with a project that has no broker."""
    (folder / "proj.py").write_text(PROJECT.format(backend=backend))
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "proj", "aioabort", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_as_a_program(dsn: str, tmp_path: Path) -> None:
    """Celery finds the commands and passes on their exit codes; no worker runs."""
    program = start(tmp_path, celery_url(dsn), "abort", "some-id", "--json")
    output, errors = program.communicate()
    assert (program.returncode, errors) == (0, "")
    assert json.loads(output)[0]["answer"] == "requested"

    program = start(tmp_path, celery_url(dsn), "status", "another-id")
    assert program.communicate() == ("another-id  PENDING\n", "")
    assert program.returncode == 1


@every_command
def test_interrupted(tmp_path: Path, name: str) -> None:
    """Ctrl-C ends it with a line, while it waits for a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        backend = f"db+postgresql://ann@127.0.0.1:{port}/db"
        program = start(tmp_path, backend, *COMMANDS[name])
        connection, _ = silent.accept()
        program.send_signal(signal.SIGINT)
        assert program.communicate() == ("", "Error: interrupted\n")
        connection.close()

    assert program.returncode == 130


def test_watch(app: Celery, dsn: str, tmp_path: Path) -> None:
    """It prints a line for each new abort request, and for each change."""
    program = start(tmp_path, celery_url(dsn), "watch", "--interval", "0.1", "--json")
    assert program.stdout is not None
    run(app, "abort", "some-id", "--by", "ann")
    first = json.loads(program.stdout.readline())
    query(dsn, "UPDATE aioabort_request SET seen_at = now(), seen_by = 'a worker'")
    second = json.loads(program.stdout.readline())
    program.send_signal(signal.SIGINT)

    assert program.communicate() == ("", "Error: interrupted\n")
    assert program.returncode == 130
    assert (first["task_id"], first["requested_by"]) == ("some-id", "ann")
    assert (first["seen_by"], second["seen_by"]) == (None, "a worker")


def test_watch_on_a_terminal(app: Celery, dsn: str, tmp_path: Path) -> None:
    """The table is redrawn in place; markup in a reason is shown as text."""
    run(app, "abort", "some-id", "--reason", "[red]why[/red]")
    (tmp_path / "proj.py").write_text(PROJECT.format(backend=celery_url(dsn)))
    main_end, terminal = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "proj", "aioabort", "watch"],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    shown = b""
    # The second query redraws the table, with its heading.
    while shown.count(b"OUTCOME") < 2:
        shown += os.read(main_end, 4096)
    program.send_signal(signal.SIGINT)
    errors = program.communicate()[1]
    os.close(main_end)

    assert (program.returncode, errors) == (130, b"Error: interrupted\n")
    assert b"some-id" in shown
    assert b"[red]why[/red]" in shown
    assert b"\x1b[1A" in shown  # back to the table's first line
