"""No example without a test."""

import re
from pathlib import Path

import pytest

from .pages import PAGES, blocks_of
from .reader import matches

TESTS = Path(__file__).parent

_FENCE = re.compile(
    r"^\s*[`~:]{3,}\s*\{?(?:code-block\}? *)?(python|sql|console|ini|pycon)"
)


def pages_with_a_test() -> set[str]:
    """Return the pages that a module of tests follows to their end."""
    texts = [path.read_text() for path in TESTS.glob("test_*.py")]
    return {
        page
        for text in texts
        for page in re.findall(r'^PAGE = "(.*)"$', text, re.MULTILINE)
        if "(reader: Reader" in text
    }


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_run(page: str) -> None:
    """Each page that has examples is followed by a test; whoever follows runs all."""
    blocks = blocks_of(page)
    fences = [
        line for line in PAGES[page].read_text().splitlines() if _FENCE.match(line)
    ]

    assert len(fences) == len(blocks), "a block is written in a way that nobody reads"
    assert not blocks or page in pages_with_a_test()


def test_sessions_that_lie_are_found() -> None:
    """What stands for anything is only the ellipsis."""
    assert matches("seen after … s\n", "seen after 0.004 s")
    assert not matches("seen after … s\n", "seen after 0.004 s by nobody")
