"""Ids run twice: what a wait has returned is never replaced by the end of the other run."""

import anyio
import pytest

from .rounds import Arena, run_round

#: The runs of one id end differently.
KINDS = {"undecided": 6, "returning": 2, "short": 1, "blind": 1}

#: Celery's backend replaces a FAILURE by STARTED when the other run begins.
KINDS_BY_BACKEND = {"Celery's": KINDS, "aioabort's": KINDS | {"failing": 3}}


@pytest.mark.parametrize("backend", KINDS_BY_BACKEND)
async def test_message_sent_twice(arena: Arena, backend: str) -> None:
    """Two runs of each id are aborted at the same moment.

    both runs: see it | one: SUCCESS, a wait returns it | the other: stops by the abort
    """
    worker = arena.workers[list(KINDS_BY_BACKEND).index(backend)]
    await run_round(
        arena,
        f"every id runs twice, {backend} backend",
        anyio.sleep,
        [worker],
        share=0.25,
        kinds=KINDS_BY_BACKEND[backend],
        copies=2,
        cleaning=1.0,
        is_final=True,
        # The outcome is that of the run that ended first.
        loses_results=True,
    )
