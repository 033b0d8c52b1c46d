"""What ends the demo early, told in one line."""


class DemoError(Exception):
    """The demo cannot go on; its message is for whoever started it."""

    status = 1


class Unusable(DemoError):
    """What the demo was given (a folder, a server, a broker) cannot be used."""

    status = 2
