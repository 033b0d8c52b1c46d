"""The demo's options, and its mode without any."""

import sys

import pytest

from aioabort.demo.arguments import SECONDS_ON_PAGE, parse


class Terminal:
    """Stands in for stdout."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._is_terminal


@pytest.mark.parametrize(
    ("arguments", "is_terminal", "mode"),
    [
        ([], True, "page"),
        ([], False, "compare"),
        (["--no-browser"], False, "page"),
        (["--port", "0"], False, "page"),
        (["--compare"], True, "compare"),
        (["--compare", "--no-browser"], True, "compare"),
        (["--runs", "3"], True, "compare"),
        (["--only", "celery"], True, "compare"),
        (["--measure"], True, "measure"),
    ],
)
def test_mode(
    arguments: list[str],
    is_terminal: bool,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a terminal, the page is served only on demand."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal))

    assert parse(arguments).mode == mode


def test_ci_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI may have a terminal, but no user who would end the page."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys, "stdout", Terminal(is_terminal=True))

    assert parse([]).mode == "compare"


def test_runs_on_the_page_are_long() -> None:
    """Runs on the page last longer by default; --seconds overrides it."""
    assert parse(["--no-browser"]).seconds == SECONDS_ON_PAGE
    assert parse(["--no-browser", "--seconds", "3"]).seconds == 3
    assert parse(["--compare"]).seconds < SECONDS_ON_PAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "-1"],
        ["--port", "65536"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--compare", "--measure"],
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, as for every unusable option."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
