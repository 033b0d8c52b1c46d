"""The README: its example, its links and its commands."""

import re

from .pages import PAGES, ROOT
from .reader import Reader

PAGE = "README.md"


def test_readme(reader: Reader) -> None:
    """The client aborts the task while it runs, and the one import is all to migrate."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow()

    printed = reader.run("python web.py")
    stopped = re.fullmatch(r"stopped after (\d+) files\n", printed)
    assert stopped is not None, printed
    assert 0 < int(stopped[1]) < 10_000
    assert reader.run("python old_proj.py") == ""


def test_links_of_the_readme() -> None:
    """Each page that it names is there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[PAGE].read_text())

    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_commands_of_the_readme() -> None:
    """A clone is set up by one command for the demo, and by one for the tests."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```$", PAGES[PAGE].read_text(), re.DOTALL | re.MULTILINE
    )

    assert blocks == [
        "pip install aioabort\n",
        "python -m pip install nox && nox -s demo\n",
        "python -m pip install nox && nox -s tests\n",
    ]
