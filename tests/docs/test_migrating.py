"""From celery.contrib.abortable and back: the lost abort, and what one import changes."""

from .pages import blocks_of
from .reader import Reader

PAGE = "docs/how-to/migrating.md"

#: Aborts a task that is queued.
ABORT_QUEUED = """
import asyncio
from aioabort import AbortClient
from proj import app, index

async def main():
    async with AbortClient(app) as client:
        result = await client.send(index, 100)
        await result.abort(reason="enough")
        print(result.id)

asyncio.run(main())
"""

#: Reads a result in a process that cannot import aioabort.
READ = """
import sys
sys.modules["aioabort"] = None
from proj import app

result = app.AsyncResult(sys.argv[1])
try:
    print(result.get(timeout=60))
except Exception as error:
    print(result.state, type(error).__module__, type(error).__name__)
"""


def test_there_and_back(reader: Reader) -> None:
    """The page holds, and without aioabort results are read and aborts are lost again."""
    reader.follow()
    reader.give("abort_queued.py", ABORT_QUEUED)
    reader.give("read.py", READ)
    reader.stop_worker()
    settled = reader.run("python abort_queued.py").strip()
    reader.start_worker()
    reader.run(f"celery -A proj aioabort watch {settled}")
    reader.stop_worker()
    pending = reader.run("python abort_queued.py").strip()

    reader.do(blocks_of(PAGE)[0])
    reader.start_worker()
    read = reader.run(f"python read.py {settled}; python read.py {pending}")
    assert read.splitlines() == [
        "REVOKED celery.exceptions TaskAborted",
        "indexed 100",
    ]
