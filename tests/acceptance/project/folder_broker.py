"""A broker that is a folder: kombu's, as dependable as a test of races needs it."""

import os
from pathlib import Path
from queue import Empty
from time import monotonic_ns
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

DRAIN = 0.2


class Channel(filesystem.Channel):
    """Messages appear as a whole, and tell whether they were delivered before."""

    def drain_events(self, *args: Any, **options: Any) -> Any:
        # Dozens of workers are idle at the same time: kombu's own look into an empty
        # folder would take most of the machine.
        with os.scandir(self.data_folder_in) as messages:
            if next(messages, None) is None:
                raise Empty
        return super().drain_events(*args, **options)

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        # kombu's own creates the file first and fills it then: a worker that looks
        # at the wrong moment takes an empty message.
        name = f"{monotonic_ns():020}_{uuid4()}.{queue}.msg"
        message = Path(self.data_folder_out, name)
        unfinished = message.with_suffix(".unfinished")
        unfinished.write_text(dumps(payload))
        unfinished.rename(message)

    def _restore(self, message: Any) -> None:
        # As Redis' transport does, and RabbitMQ itself.
        message.properties["delivery_info"]["redelivered"] = True
        super()._restore(message)


class Transport(filesystem.Transport):
    """The transport of ``folder://``."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        # A worker is not told to stop before this returns.
        super().drain_events(connection, min(timeout or DRAIN, DRAIN))


# A function, as kombu would call the class.
TRANSPORT_ALIASES["folder"] = lambda: Transport
