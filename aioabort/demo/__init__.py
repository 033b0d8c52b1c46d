"""The demo, ``python -m aioabort.demo``."""


class DemoError(Exception):
    """The demo cannot continue; the message is printed as one line."""

    exit_status = 1


class UnusableOption(DemoError):
    """A directory, server or broker from the command line cannot be used."""

    exit_status = 2
