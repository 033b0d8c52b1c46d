"""Which of its faces the demo shows."""

import sys

import pytest

from aioabort.demo.arguments import SECONDS_ON_PAGE, parse


class Terminal:
    """Standard output, and whether somebody looks at it."""

    def __init__(self, is_watched: bool) -> None:
        self._is_watched = is_watched

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._is_watched


@pytest.mark.parametrize(
    ("arguments", "is_watched", "mode"),
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
    is_watched: bool,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page is for people: where nobody looks, it is served only on demand."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal(is_watched))

    assert parse(arguments).mode == mode


def test_a_terminal_of_ci_is_watched_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page there would wait for ever."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys, "stdout", Terminal(is_watched=True))

    assert parse([]).mode == "compare"


def test_runs_on_the_page_are_long() -> None:
    """There is time to press a button; --seconds still says how much."""
    assert parse(["--no-browser"]).seconds == SECONDS_ON_PAGE
    assert parse(["--no-browser", "--seconds", "3"]).seconds == 3
    assert parse(["--compare"]).seconds < SECONDS_ON_PAGE


@pytest.mark.parametrize(
    "arguments", [["--port", "-1"], ["--port", "65536"], ["--compare", "--measure"]]
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, as for everything that cannot be used."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
