"""The directory tree that is indexed."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from aioabort.demo.errors import Unusable


def first_files(root: Path, most: int) -> list[Path]:
    """Return the first files below *root*, in an order that does not change."""
    return list(islice(_files(root), most))


def checked_files(root: Path, most: int) -> list[Path]:
    """Return what ``first_files()`` does, or raise Unusable if there are none."""
    if not root.is_dir():
        raise Unusable(f"--path: {root} is not a directory")
    if not (files := first_files(root, most)):
        raise Unusable(f"--path: {root} has no files that can be read")
    return files


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            # A named pipe, for one, would never end.
            if path.is_file() and os.access(path, os.R_OK):
                yield path
