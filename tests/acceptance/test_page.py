"""The demo's page, in a real browser, with a real worker."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.support.waiting import BOUND

#: Half a second per file: enough time to press a button.
FILES = 120
SECONDS = 60

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: Minimum size of a touch target in pixels, by WCAG 2.2.
FINGER = 44

# In milliseconds. On a busy machine, a worker's first tasks may begin late.
expect.set_options(timeout=2_000 * BOUND)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the page; its worker runs two tasks at the same time."""
    tree = tmp_path_factory.mktemp("page") / "tree"
    tree.mkdir()
    for number in range(FILES):
        (tree / f"{number}.txt").write_text(f"file {number}")
    command = [
        *(sys.executable, "-m", "aioabort.demo", "--no-browser"),
        *("--path", str(tree), "--seconds", str(SECONDS), "--concurrency", "2"),
    ]
    with subprocess.Popen(
        command, cwd=tree.parent, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if found := re.search(r"http://\S+/", line):
                yield found[0]
                break
        demo.send_signal(signal.SIGINT)
        lines += demo.stdout
    assert (demo.returncode, lines[-1]) == (0, "Stopped.\n"), lines


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, env={**os.environ}
        )


@pytest.fixture
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """The loaded page; the browser's console must stay empty."""
    messages: list[str] = []
    page = chromium.new_page(viewport={"width": 1200, "height": 800})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(url)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    # Earlier runs are shown once the page has fetched them.
    expect(page.locator("#link")).not_to_have_text("connecting")
    yield page
    if page.get_by_role("button", name="Abort all").is_enabled():
        page.get_by_role("button", name="Abort all").click()
    expect(page.locator("[data-word=running], [data-word=queued]")).to_have_count(0)
    page.close()
    # The browser itself logs a 422.
    assert [line for line in messages if "422" not in line] == []


def start(page: Page, runs: int) -> None:
    """Start *runs*, and return when they are shown.

    Closes: started | a run of before is still the first one, and waited for | shown
    """
    before = page.locator(".run").count()
    page.locator("#count").fill(str(runs))
    page.get_by_role("button", name="Start indexing").click()
    expect(page.locator(".run")).to_have_count(before + runs)


def one_that_is(page: Page, word: str) -> Locator:
    """Two of three runs are in progress, one waits; the broker may reorder them."""
    expect(page.locator(".run[data-word=running]")).to_have_count(2)
    expect(page.locator(".run[data-word=queued]")).to_have_count(1)
    number = page.locator(f".run[data-word={word}] .number").first.inner_text()
    return page.locator(".run", has=page.get_by_text(number, exact=True))


def test_runs_are_watched_and_aborted(page: Page) -> None:
    """Progress is live; an abort is requested, seen and honoured."""
    start(page, 3)
    first = one_that_is(page, "running")
    expect(first.locator(".count")).to_have_text(re.compile(r"^[1-9]\d* of 120 files"))

    page.get_by_label("Your name").fill("alice")
    page.get_by_label("Reason").fill("<b>wrong</b> tree")
    first.get_by_role("button", name=re.compile(r"Abort run \d+")).click()

    story = first.get_by_role("list")
    expect(story).to_contain_text("by alice: “<b>wrong</b> tree”")
    expect(story).to_contain_text(re.compile(r"Seen\s+\+[\d.]+ m?s\s+by \S+@\S+"))
    expect(story).to_contain_text(
        re.compile(r"Stopped\s+\+[\d.]+ m?s\s+it returned early")
    )
    expect(first.locator(".word")).to_have_text("stopped")
    expect(first.get_by_role("button")).to_be_hidden()


def test_a_queued_run_never_begins(page: Page) -> None:
    """A queued run can be aborted; it stops when the worker takes it."""
    start(page, 3)
    waiting = one_that_is(page, "queued")
    waiting.get_by_role("button").click()
    expect(waiting.locator(".word")).to_have_text("stopping")
    expect(waiting.get_by_role("list")).to_contain_text("when the worker takes it")

    page.get_by_role("button", name="Abort all").click()

    expect(waiting.get_by_role("list")).to_contain_text("it never began")
    expect(waiting.locator(".count")).to_have_text("0 of 120 files")
    expect(page.get_by_role("status").last).to_have_text(re.compile("has stopped"))
    expect(page.get_by_role("status").first).to_have_text("nothing runs")


def test_a_reload_keeps_the_runs(page: Page) -> None:
    """Started and aborted runs are shown again."""
    start(page, 1)
    newest = page.locator(".run").first
    newest.get_by_role("button").click()
    expect(newest.locator(".word")).to_have_text("stopped")
    runs = page.locator(".run").count()

    page.reload()

    expect(page.locator(".run")).to_have_count(runs)
    expect(page.locator(".run").first.get_by_role("list")).to_contain_text("Requested")


def test_it_fits_a_phone(page: Page) -> None:
    """Nothing overflows, and touch targets are large enough."""
    page.set_viewport_size({"width": 360, "height": 740})
    start(page, 1)
    newest = page.locator(".run").first
    expect(newest.locator(".word")).to_have_text("running")

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for control in page.locator("button:visible, input:visible").all():
        box = control.bounding_box()
        assert box is not None
        assert box["height"] >= FINGER
        assert box["width"] >= FINGER


def test_a_wrong_directory_is_an_error(page: Page) -> None:
    """The error is beside the form, and an alert for screen readers."""
    runs = page.locator(".run").count()
    page.get_by_label("Directory").fill("/nowhere")
    page.get_by_role("button", name="Start indexing").click()

    expect(page.get_by_role("alert").first).to_have_text("/nowhere is not a directory")
    assert page.locator(".run").count() == runs


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"count": 0}, 422),
        ({"count": 21}, 422),
        ({"count": True}, 422),
        ({"path": 1}, 422),
        ({"path": "~nobody-at-all"}, 422),
        ({"path": "x" * 5_000}, 422),
        ({"command": "rm"}, 422),
        ([], 422),
    ],
)
def test_a_wrong_body_is_refused(url: str, body: object, status: int) -> None:
    """The endpoint checks its input: the page is not its only client."""
    answer = httpx.post(f"{url}runs", json=body)

    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_start_nothing(
    url: str, headers: dict[str, str], status: int
) -> None:
    """Neither from their own pages nor by DNS rebinding."""
    answer = httpx.post(f"{url}runs", json={}, headers=headers)

    assert answer.status_code == status
