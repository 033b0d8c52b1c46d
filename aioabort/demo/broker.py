"""A broker in a directory: Kombu's filesystem transport, with atomic messages."""

from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

SCHEME = "aioabort-demo"


class AtomicChannel(filesystem.Channel):
    """Kombu's channel, except that a message's file appears complete.

    Kombu creates the file before it writes the message. A worker that reads it in
    between takes an empty message and loses the task, which the demo would count as a
    lost abort.
    """

    # The stubs of the base classes disagree about the second argument's name.
    def _put(  # type: ignore[override]
        self, queue: str, payload: dict[str, Any], **_: Any
    ) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        message = Path(self.data_folder_out, name)
        # A reader takes every file with ".msg" in its name, also a hidden one.
        unfinished = message.with_suffix(".unfinished")
        unfinished.write_text(dumps(payload))
        unfinished.rename(message)


class AtomicTransport(filesystem.Transport):
    """The transport for URLs with our scheme."""

    Channel: type[filesystem.Channel] = AtomicChannel


def register_scheme() -> None:
    """Register the transport with Kombu, where Celery looks it up."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:AtomicTransport"


def filesystem_settings(folder: Path) -> dict[str, Any]:
    """Return Celery's settings for a broker in *folder*."""
    queues = folder / "queues"
    queues.mkdir()
    return {
        "broker_url": f"{SCHEME}://localhost/",
        "broker_transport_options": {
            "data_folder_in": str(queues),
            "data_folder_out": str(queues),
            "control_folder": str(folder / "exchanges"),
            "polling_interval": 0.02,
        },
    }
