"""Many tasks in one call, and all tasks that a workflow consists of."""

from .reader import Reader

PAGE = "docs/how-to/bulk-and-canvas.md"

#: The mistake that the page warns of.
BY_GROUP_ID = """
import asyncio
import sys
from aioabort import AbortClient
from proj import app

async def main():
    async with AbortClient(app) as client:
        group_id = sys.argv[1]
        await client.abort(group_id)

asyncio.run(main())
"""


def test_bulk_and_canvas(reader: Reader) -> None:
    """One call aborts all tasks of a list or a workflow; a group's id is refused."""
    reader.follow()
    reader.give("by_group_id.py", BY_GROUP_ID)
    group_id = reader.run("python start_group.py").strip()

    refusal = reader.run(f"python by_group_id.py {group_id}")
    assert f"GroupResult.restore('{group_id}', app=app)" in refusal
    answers = reader.run(f"python abort_group.py {group_id}")
    assert answers == "['requested', 'requested', 'requested']\n"
    assert "InvalidRequest" in reader.run("python abort_group.py unsaved")
