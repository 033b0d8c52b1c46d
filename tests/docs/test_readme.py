"""What the README promises to whoever reads nothing else."""

import re

from .pages import PAGES, ROOT
from .reader import Reader

PAGE = "README.md"


def test_readme(reader: Reader) -> None:
    """Its two programs work with each other, and its one import is all."""
    (reader.folder / "data").mkdir()
    reader.replaced["/srv/data"] = str(reader.folder / "data")
    reader.follow()
    reader.start_worker()

    # Which of them is a matter of whose turn it is.
    assert reader.run("python web.py") in {"alice pressed cancel\n", "None\n", "0\n"}
    assert reader.run("python old_proj.py") == ""


def test_links_of_the_readme() -> None:
    """Each page that it names is there."""
    links = re.findall(r"\]\((docs/[^)#]*)", PAGES[PAGE].read_text())

    assert links
    assert all((ROOT / link).is_file() for link in links)
