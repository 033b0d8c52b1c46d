"""A Django project with a worker, a server and a browser."""

import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.brokers import FOLDER_TRANSPORT, folder_broker
from tests.support.databases import query
from tests.support.django_project import Project
from tests.support.programs import block_until_started, free_port, listens
from tests.support.waiting import BOUND, block_until

from .test_page import ARGUMENTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

TASKS = """
from celery import shared_task

from aioabort import AbortableTask


@shared_task(bind=True, base=AbortableTask)
def index(self):
    while True:
        self.raise_if_aborted()
        self.abort_token.wait(0.05)
"""

START = """
from mysite.tasks import index
show(index.delay().id)
"""

VIEWS = """
from django.http import HttpResponse
from django.urls import path

from aioabort import sync


def abort(request):
    return HttpResponse(sync.abort("some-id").answer)


urlpatterns = [path("abort", abort)]
"""

OURS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
"""

STATE = "SELECT status FROM django_celery_results_taskresult WHERE task_id = %s"


@pytest.fixture
def project(migrated: Project) -> Project:
    """A project with a task, and a broker of its own."""
    migrated.write("mysite/tasks.py", TASKS)
    for key, value in folder_broker(migrated.folder / "broker").items():
        migrated.configure(f"CELERY_{key.upper()} = {value!r}")
    migrated.configure("CELERY_TASK_TRACK_STARTED = True")
    transport = (FOLDER_TRANSPORT / "folder_broker.py").read_text()
    migrated.write("folder_broker.py", transport)
    celery = migrated.folder / "mysite" / "celery.py"
    migrated.write("mysite/celery.py", "import folder_broker\n" + celery.read_text())
    return migrated


@contextmanager
def running(project: Project, name: str, *words: str) -> Iterator[Project]:
    """Run a module of Python's in the project, and stop it when the block ends."""
    log = project.folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=project.folder,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        if name == "worker":
            block_until_started(process, lambda: " ready." in log.read_text(), log)
        else:
            port = int(words[-1])
            block_until_started(process, lambda: listens(port), log)
        yield project
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(BOUND)
        finally:
            process.kill()
            process.wait()


WORKER = (
    *("-m", "celery", "-A", "mysite", "worker", "--concurrency=1", "--loglevel=INFO"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
)


def test_a_worker_says_at_its_start_that_nothing_can_be_aborted(
    project: Project,
) -> None:
    """Not with its first task."""
    port = free_port()
    project.configure(f"CELERY_AIOABORT_DSN = 'postgresql://u:hush@127.0.0.1:{port}/x'")
    log = project.folder / "worker.log"

    with running(project, "worker", *WORKER):
        block_until(lambda: "tasks run, but cannot be aborted" in log.read_text())

    assert str(port) in log.read_text()
    assert "hush" not in log.read_text()


def test_reloads_of_runserver_leave_no_connection(project: Project) -> None:
    """The process that a changed file ends takes its connections with it."""
    project.write("mysite/urls.py", VIEWS)
    port = free_port()

    def answer() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/abort") as opened:
                return str(opened.read().decode())
        except OSError:
            return ""  # it is being reloaded

    def pids() -> set[int]:
        return {pid for (pid,) in query(project.dsn, OURS)}

    with running(project, "server", "manage.py", "runserver", str(port)):
        assert block_until(answer) == "requested"
        first = pids()
        project.write("mysite/urls.py", VIEWS + "# changed")
        block_until(lambda: not first & pids())
        assert block_until(answer) == "requested_before"
        assert 0 < len(pids()) <= len(first)
    block_until(lambda: not pids())


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless browser, in which no script fails."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert errors == []


def test_a_running_task_is_aborted_in_the_admin(project: Project, page: Page) -> None:
    """From the list of results over the confirmation to the outcome."""
    port = free_port()
    project.run("""
from django.contrib.auth.models import User
User.objects.create_superuser("alice", password="wonderland")
show(None)
""")
    with (
        running(project, "worker", *WORKER),
        running(project, "server", "manage.py", "runserver", "--noreload", str(port)),
    ):
        task_id = project.run(START)
        block_until(lambda: query(project.dsn, STATE, task_id) == [("STARTED",)])

        page.goto(f"http://127.0.0.1:{port}/admin/")
        page.get_by_label("Username").fill("alice")
        page.get_by_label("Password").fill("wonderland")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="Task results").first.click()
        page.locator("input.action-select").check()
        page.locator("select[name=action]").select_option("Abort selected tasks")
        page.locator("button[name=index]").click()
        expect(page.get_by_text("Abort 1 task?")).to_be_visible()
        expect(page.get_by_role("listitem").filter(has_text=task_id)).to_be_visible()
        page.get_by_role("link", name="Cancel").click()
        expect(page.locator("input.action-select")).to_be_visible()
        assert query(project.dsn, "SELECT * FROM aioabort_request") == []

        page.locator("input.action-select").check()
        page.locator("select[name=action]").select_option("Abort selected tasks")
        page.locator("button[name=index]").click()
        page.get_by_label("Reason").fill("wrong index")
        page.get_by_role("button", name="Abort").click()
        expect(page.get_by_text("Tasks: 1 asked to stop.")).to_be_visible()

        block_until(lambda: query(project.dsn, STATE, task_id) == [("REVOKED",)])
        page.goto(f"http://127.0.0.1:{port}/admin/aioabort/abortrequest/")
        outcome = page.locator("td.field-state")
        block_until(lambda: page.reload() and outcome.inner_text() == "aborted")
        row = page.locator("#result_list tbody tr")
        expect(row).to_contain_text("alice")
        expect(row).to_contain_text("wrong index")
        expect(row).to_contain_text(re.compile(r"celery@\S+"))
