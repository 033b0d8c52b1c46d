"""Code without an event loop, without a client, and with a pool of its own."""

from .reader import Reader

PAGE = "docs/how-to/synchronous.md"

#: What a view does in a thread that has not imported the app.
IN_A_THREAD = """
import threading
from aioabort import sync
from proj import app

def abort():
    try:
        sync.abort("some-id")
    except Exception as error:
        print(type(error).__name__, error)
    print(sync.abort("some-id", app=app).answer)
    sync.close()

thread = threading.Thread(target=abort)
thread.start()
thread.join()
"""


def test_synchronous(reader: Reader) -> None:
    """Each program aborts its task; a thread without the app needs ``app=``."""
    reader.replaced["postgresql://postgres@localhost/postgres"] = reader.dsn
    reader.follow()
    reader.give("in_a_thread.py", IN_A_THREAD)
    refusal, answer = reader.run("python in_a_thread.py").splitlines()

    assert refusal.startswith("ImproperlyConfigured")
    assert "the result backend is 'disabled'" in refusal
    assert answer == "requested"
