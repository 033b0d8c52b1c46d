"""Kombu's filesystem transport, made safe for a demo that counts what is lost."""

from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

SCHEME = "aioabort-demo"


class Channel(filesystem.Channel):
    """Kombu's channel, except that a message appears whole or not at all.

    Kombu creates the file before it writes it: a worker that looks just then takes an
    empty message, and the task is lost before anybody could abort it.
    """

    # The stubs' name for the second argument is not the same in all base classes.
    def _put(  # type: ignore[override]
        self, queue: str, payload: dict[str, Any], **_: Any
    ) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        message = Path(self.data_folder_out, name)
        # A reader takes whatever has ".msg" in its name, hidden or not.
        unfinished = message.with_suffix(".unfinished")
        unfinished.write_text(dumps(payload))
        unfinished.rename(message)


class Transport(filesystem.Transport):
    """The transport that Celery finds under our scheme."""

    Channel: type[filesystem.Channel] = Channel


def register_scheme() -> None:
    """Have Celery find the transport."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"


def filesystem_settings(folder: Path) -> dict[str, Any]:
    """Return Celery's settings for a broker that is a folder."""
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
