"""The README's examples for tests, run as a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"

#: What the README's project calls and does not show.
HELPERS = """
def walk(root): return [f"{root}/{number}" for number in range(5)]
def digest(path): return hash(path)
"""


def examples() -> dict[str, str]:
    """Return the README's programs by the file that they say they are."""
    blocks = re.findall(
        r"```python\n(# (\w+\.py)\b.*?)```", README.read_text(), re.DOTALL
    )
    return {name: text for text, name in blocks}


def test_examples_of_tests(tmp_path: Path) -> None:
    """A project of the README's own passes the README's tests."""
    files = examples()
    files["proj.py"] = HELPERS + files["proj.py"]
    for name in ("proj.py", "conftest.py", "test_index.py", "test_abort.py"):
        (tmp_path / name).write_text(files[name])

    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-o", "asyncio_mode=auto", "-o", "pythonpath=."),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "2 passed" in run.stdout, run.stdout
