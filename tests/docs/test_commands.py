"""What the commands say of themselves."""

from .reader import Reader

PAGE = "docs/reference/commands.md"


def test_help(reader: Reader) -> None:
    """The page shows the help of each command as it is."""
    reader.follow()
