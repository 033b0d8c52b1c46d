"""The admin, by Django's test client."""

from typing import Any

from tests.support.databases import query
from tests.support.django_project import Project

BEGINNING = """
import html, json, re
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.test.utils import setup_test_environment
from django_celery_results.models import TaskResult
from aioabort import sync
from aioabort.django.models import AbortRequest

REQUESTS = "/admin/aioabort/abortrequest/"
RESULTS = "/admin/django_celery_results/taskresult/"
setup_test_environment()  # it keeps the context of templates
ACTION = {"action": "abort_selected_tasks", "index": "0"}

def client_of(name, *permissions):
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(enforce_csrf_checks=False)
    client.force_login(user)
    return client

def admin():
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client

def results(*ids, status="STARTED"):
    return [TaskResult.objects.create(task_id=i, status=status).pk for i in ids]

def hidden(page):
    fields = re.findall(r'<input type="hidden" name="(\\w+)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in fields}

def messages(response):
    return [str(message) for message in response.context["messages"]]

def requests():
    return list(AbortRequest.objects.order_by("task_id").values_list(
        "task_id", "requested_by", "reason"))
"""


def run(project: Project, program: str) -> Any:
    return project.run(BEGINNING + program)


def test_the_list_is_read_only(migrated: Project) -> None:
    """It shows who, why and how it ended; it filters, and changes nothing."""
    shown = run(
        migrated,
        """
client = admin()
sync.abort("one", reason="too slow", requested_by="alice")
sync.abort("two")
AbortRequest.objects.filter(task_id="two").update(outcome="aborted")
page = client.get(REQUESTS).content.decode()
def listed(query):
    found = client.get(REQUESTS + query).context["cl"].result_list
    return [each.task_id for each in found]
show({
    "page": [text in page for text in ("alice", "too slow", "pending", "aborted")],
    "pending": listed("?outcome=pending"),
    "aborted": listed("?outcome=aborted"),
    "unseen": listed("?seen_at__isempty=1"),
    "search": listed("?q=alice"),
    "newest first": listed(""),
    "details": client.get(REQUESTS + "one/change/").status_code,
    "changes": [
        client.post(REQUESTS + path).status_code
        for path in ("add/", "one/change/", "one/delete/")
    ],
    "actions": list(client.get(REQUESTS).context["cl"].model_admin.get_actions(
        client.get(REQUESTS).wsgi_request)),
})
""",
    )

    assert shown == {
        "page": [True] * 4,
        "pending": ["one"],
        "aborted": ["two"],
        "unseen": ["two", "one"],
        "search": ["one"],
        "newest first": ["two", "one"],
        "details": 200,
        "changes": [403, 403, 403],
        "actions": ["abort_selected_tasks"],
    }


def test_selected_tasks_are_aborted_once_confirmed(migrated: Project) -> None:
    """In the name of the user; a task that has ended stays as it is."""
    shown = run(
        migrated,
        """
client = admin()
ids = results("one", "<b>two</b>") + results("ended", status="SUCCESS")
first = client.post(RESULTS, {**ACTION, "_selected_action": ids})
before = requests()
fields = {**hidden(first.content.decode()), "reason": "wrong input"}
second = client.post(RESULTS, fields, follow=True)
again = client.post(RESULTS, {**fields, "grace": "5"}, follow=True)
show({
    "shown": "<li>&lt;b&gt;two&lt;/b&gt;</li>" in first.content.decode(),
    "before": before,
    "requests": requests(),
    "messages": messages(second) + messages(again),
    "grace": AbortRequest.objects.filter(kill_at__isnull=False).count(),
})
""",
    )

    assert shown == {
        "shown": True,
        "before": [],
        "requests": [
            ["<b>two</b>", "root", "wrong input"],
            ["one", "root", "wrong input"],
        ],
        "messages": [
            "Tasks: 2 asked to stop, 1 had ended.",
            "Tasks: 2 asked to stop before, 1 had ended.",
        ],
        "grace": 2,
    }


def test_those_that_were_shown_are_aborted(migrated: Project) -> None:
    """Not those that the filter selects by the time of the confirmation.

    Closes: confirmation shown | a task of the filter starts, another enters it | confirmed
    """
    shown = run(
        migrated,
        """
client = admin()
results("one", "two", status="PENDING")
listed = RESULTS + "?status__exact=PENDING"
first = client.post(listed, {**ACTION, "select_across": "1", "_selected_action": ["1"]})
TaskResult.objects.filter(task_id="one").update(status="STARTED")
results("three", status="PENDING")
client.post(listed, hidden(first.content.decode()))
show([task_id for task_id, *_ in requests()])
""",
    )

    assert shown == ["one", "two"]


def test_permission_is_needed(migrated: Project) -> None:
    """Without it the action is not offered, and does nothing if it is posted."""
    shown = run(
        migrated,
        """
viewer = client_of("viewer", "view_taskresult", "view_abortrequest")
aborter = client_of("aborter", "view_taskresult", "abort_task")
[pk] = results("one")
fields = {**ACTION, "_selected_action": [pk], "confirmed": "yes",
          "task_ids": '["one"]', "select_across": "1"}
offered = ["abort_selected_tasks" in c.get(RESULTS).content.decode()
           for c in (viewer, aborter)]
viewer.post(RESULTS, fields)
refused = requests()
aborter.post(RESULTS, fields)
show({
    "offered": offered, "refused": refused, "allowed": requests(),
    "no list": aborter.get(REQUESTS).status_code,
})
""",
    )

    assert shown == {
        "offered": [False, True],
        "refused": [],
        "allowed": [["one", "aborter", None]],
        "no list": 403,
    }


def test_a_wrong_field_is_shown_again(migrated: Project) -> None:
    """With the error; nothing is aborted."""
    wrong = [
        ("reason", "x" * 4_097, "at most 4096 bytes"),
        ("reason", "ü" * 2_049, "at most 4096 bytes"),
        ("reason", "a\0b", "Null characters are not allowed"),
        ("grace", "-1", "grace is a number of seconds"),
        ("grace", "nan", "Enter a number"),
        ("task_ids", "nonsense", "No list of task ids"),
        ("task_ids", "[1]", "No list of task ids"),
    ]
    shown = run(
        migrated,
        f"wrong = {wrong!r}"
        """
client = admin()
[pk] = results("one")
first = client.post(RESULTS, {**ACTION, "_selected_action": [pk]})
pages = [
    client.post(RESULTS, {**hidden(first.content.decode()), field: value})
    for field, value, _ in wrong
]
show([
    [said in html.unescape(page.content.decode())
     for page, (*_, said) in zip(pages, wrong)],
    requests(),
])
""",
    )

    assert shown == [[True] * len(wrong), []]


def test_trouble_is_a_message(migrated: Project) -> None:
    """PostgreSQL cannot be reached by aioabort: the page says so, without a 500."""
    migrated.configure("CELERY_AIOABORT_DSN = 'postgresql://u:hush@127.0.0.1:1/x'")
    shown = run(
        migrated,
        """
client = admin()
results("one")
fields = {**ACTION, "confirmed": "yes", "task_ids": '["one"]', "_selected_action": "0"}
show(messages(client.post(RESULTS, fields, follow=True)))
""",
    )

    assert len(shown) == 1
    assert shown[0].startswith("No task was aborted: ")
    assert "hush" not in shown[0]


def test_an_admin_of_the_project_keeps_the_action(migrated: Project) -> None:
    """A subclass of django-celery-results' own inherits it."""
    migrated.write(
        "mysite/admin.py",
        """
from django.contrib import admin
from django_celery_results.admin import TaskResultAdmin
from django_celery_results.models import TaskResult

class OwnAdmin(TaskResultAdmin):
    list_display = ("task_id",)

admin.site.unregister(TaskResult)
admin.site.register(TaskResult, OwnAdmin)
""",
    )
    shown = run(
        migrated,
        """
client = admin()
results("one")
response = client.get(RESULTS)
show([type(response.context["cl"].model_admin).__name__,
      "abort_selected_tasks" in response.content.decode()])
""",
    )

    assert shown == ["OwnAdmin", True]


def test_the_admin_works_without_django_celery_results(migrated: Project) -> None:
    """Results may be elsewhere."""
    migrated.configure("INSTALLED_APPS.remove('django_celery_results')")
    migrated.configure("CELERY_RESULT_BACKEND = 'redis://'")
    found = migrated.run("""
import sys
from django.contrib import admin
from aioabort.django.models import AbortRequest
show([admin.site.is_registered(AbortRequest), "django_celery_results" in sys.modules])
""")

    assert found == [True, False]
    assert query(migrated.dsn, "SELECT count(*) FROM aioabort_request") == [(0,)]
