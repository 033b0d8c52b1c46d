"""The pages of the documentation, and the examples in them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The pages by their paths in the repository.
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}

#: Blocks in these languages are run on every page.
RUN = {"console", "ini", "python", "sql"}

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w/]+\.(?:py|ini))\b(.*)")


@dataclass(frozen=True)
class Block:
    """One example of a page, which begins at *line*."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file name in the comment on its first line."""
        name = _FILE.match(self.text)
        return name[1] if name else None

    @property
    def is_continued(self) -> bool:
        """Whether it is appended to the file of an earlier block."""
        name = _FILE.match(self.text)
        return name is not None and "continued" in name[2]


def blocks_of(page: str) -> list[Block]:
    """Return the examples of the page that a test must run."""
    text = PAGES[page].read_text()
    return [
        Block(
            line=text.count("\n", 0, fence.start()) + 1,
            language=fence[2],
            text=textwrap.dedent(fence[3]),
        )
        for fence in _FENCE.finditer(text)
        if fence[2] in RUN
    ]
