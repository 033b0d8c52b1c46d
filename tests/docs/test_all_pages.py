"""Every example has a test."""

import re
import runpy
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, blocks_of
from .reader import matches

TESTS = Path(__file__).parent

_FENCE = re.compile(
    r"^\s*[`~:]{3,}\s*\{?(?:code-block\}? *)?(python|sql|console|ini|pycon)"
)


def pages_with_a_test() -> set[str]:
    """Return the pages that a test module follows to their end."""
    texts = [path.read_text() for path in TESTS.glob("test_*.py")]
    return {
        page
        for text in texts
        for page in re.findall(r'^PAGE = "(.*)"$', text, re.MULTILINE)
        if "(reader: Reader" in text
    }


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_run(page: str) -> None:
    """Each page with examples has a test that follows it, and so runs all of them."""
    blocks = blocks_of(page)
    fences = [
        line for line in PAGES[page].read_text().splitlines() if _FENCE.match(line)
    ]

    assert len(fences) == len(blocks), "the tests do not recognize one of the blocks"
    assert not blocks or page in pages_with_a_test()


def test_old_names_lead_to_pages() -> None:
    """Each redirect leads from a name that is free to a page that exists."""
    redirects: dict[str, str] = runpy.run_path(f"{ROOT}/docs/conf.py")["redirects"]

    assert redirects
    for old, new in redirects.items():
        target = Path("docs", old).with_name(new).with_suffix(".md")
        assert str(target) in PAGES
        assert f"docs/{old}.md" not in PAGES


def test_wrong_output_is_found() -> None:
    """Only the ellipsis stands for any text."""
    assert matches("seen after … s\n", "seen after 0.004 s")
    assert not matches("seen after … s\n", "seen after 0.004 s by nobody")
