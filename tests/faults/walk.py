"""A random walk: what users do to a task, in any order, and what must come of it.

A walker publishes one task after the other, awaits it, cancels waits, aborts, revokes
and forgets it at random moments. When the task has ended, every receipt and every wait
is compared with the diary that the task has kept.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import anyio
from celery import Celery, states

from aioabort import AbortClient, AbortReceipt, TaskAborted
from aioabort.timing import Timing
from tests.support.waiting import BOUND

from .load import TICK, clock
from .workers import Diary, Page

#: What the tasks do, and how many of a hundred do it.
KINDS = {
    "raising": 20,
    "returning": 15,
    "failing": 15,
    "progressing": 5,
    "waiting": 10,
    "cancelled": 15,
    "retrying": 10,
    "short": 5,
    "blind": 5,
}

#: Seconds after its publication at which a step is taken, at most.
LATEST_STEP = 1.5

#: Seconds that tasks which end by themselves take, at most.
LONGEST_TASK = 1.0

#: Seconds after a request; a check that finds no abort later is a lost abort.
LATEST_CHECK = 15.0

#: Seconds after which a receipt derives the outcome from the final state.
SETTLE_TIMEOUT = Timing().settle_timeout

#: The share of the results that are forgotten.
FORGETTING = 0.2

#: Seconds from the end of a body until its result is stored, at most.
STORING = 2.0

#: The endings of a task that Celery, but no abort request, has stopped.
REVOKED = "TaskRevokedError"


@dataclass(slots=True)
class Answer:
    """An ``abort()``: when it was called and had returned, and what its receipt said."""

    called: float
    returned: float
    receipt: AbortReceipt
    outcome: str | None = None
    was_seen: bool | None = None
    #: Seconds until ``seen()`` returned.
    seen_after: float = 0.0


@dataclass(slots=True)
class Story:
    """One task, and all that was done to it."""

    kind: str
    queue: str
    task_id: str = field(default_factory=lambda: str(uuid4()))
    steps: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    #: How each wait ended that was not cancelled.
    endings: list[str] = field(default_factory=list)
    is_revoked: bool = False
    #: Whether a cancelled wait has aborted the task, which gives no receipt.
    is_aborted_by_wait: bool = False

    def problems(self, page: Page) -> list[str]:
        """Return what does not agree with the diary's *page*."""
        return [*self._of_waits(page), *self._of_answers(page)]

    def _of_waits(self, page: Page) -> list[str]:
        problems: list[str] = []
        endings = set(self.endings)
        if self.is_revoked and page.begun:
            # Celery's revoke() may store REVOKED for a task that is about to begin;
            # STARTED overwrites it, and the task runs on.
            endings.discard(REVOKED)
        if len(endings) > 1:
            problems.append(f"the waits ended differently: {self.endings}")
        outcomes = {answer.outcome for answer in self.answers}
        is_aborted = "aborted" in outcomes or self.is_aborted_by_wait
        if "TaskAborted" in endings and not is_aborted:
            problems.append(f"a wait says aborted, the receipts {outcomes}")
        if REVOKED in endings and not self.is_revoked:
            problems.append("a wait says revoked, but no step revoked the task")
        return problems

    def _of_answers(self, page: Page) -> list[str]:
        problems: list[str] = []
        for answer in self.answers:
            if answer.receipt.is_requested:
                problems += self._of_request(answer, page)
            elif not self.is_revoked:
                has_ended = [end for end in page.ended if end < answer.returned]
                if len(has_ended) < len(page.begun):
                    problems.append("abort() says finished, and a body ran on")
        outcomes = {a.outcome for a in self.answers if a.receipt.is_requested}
        if len(outcomes) > 1:
            problems.append(f"the receipts say different outcomes: {outcomes}")
        return problems

    def _of_request(self, answer: Answer, page: Page) -> list[str]:
        problems: list[str] = []
        late = answer.returned + LATEST_CHECK
        if max(page.in_vain, default=0) > late or max(page.begun, default=0) > late:
            problems.append("LOST: the task ran on without seeing the abort")
        if not self._may_end_with(answer, page):
            problems.append(f"{answer.outcome} does not agree with the diary")
        # Before a body began, or between two of them, no body can see the abort.
        # A client does not wait for workers that are late to record it.
        may_differ = (
            not page.begun
            or self.kind == "retrying"
            or answer.seen_after > SETTLE_TIMEOUT
            # See _of_waits(): the abort may find the task ended, and the task runs on.
            or self.is_revoked
        )
        if answer.was_seen != page.has_seen and not may_differ:
            problems.append(f"seen() says {answer.was_seen}")
        return problems

    def _may_end_with(self, answer: Answer, page: Page) -> bool:
        match answer.outcome:
            case "aborted":
                is_stopped_outside = not page.begun or self.kind == "retrying"
                return page.has_seen or is_stopped_outside
            case "returned":
                return page.has_seen and self.kind in {"returning", "short"}
            case "failed":
                return page.has_seen and self.kind == "failing"
            case "too_late":
                ran_on = any(at > answer.called - STORING for at in page.ended)
                return not page.has_seen and (ran_on or self.is_revoked)
        return False


@dataclass
class Walk:
    """Walkers over *queues*, through one client; *oddities* has a line for each problem."""

    client: AbortClient
    queues: dict[str, Celery]
    diary: Diary
    chance: random.Random
    stories: int = 0
    done: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    #: How the waits ended whose result was forgotten.
    endings: Counter[str] = field(default_factory=Counter)
    oddities: list[str] = field(default_factory=list)

    async def run(self, walkers: int, seconds: float) -> None:
        """Have so many *walkers* walk for so many *seconds*."""
        end = clock() + seconds

        async def walk() -> None:
            while clock() < end:
                await self._tell(self._new_story())

        async with anyio.create_task_group() as group:
            for _ in range(walkers):
                group.start_soon(walk)

    def report(self) -> Iterator[str]:
        """Yield lines that say how much was tried."""
        yield f"{self.stories:,} tasks, {len(self.oddities)} odd"
        for what, counts in {
            "done": self.done,
            "outcomes": self.outcomes,
            "waits after forget()": self.endings,
        }.items():
            numbers = (f"{count:,} {name}" for name, count in counts.most_common())
            yield f"{what}: {', '.join(numbers)}"
        yield from self.oddities[:20]

    def _new_story(self) -> Story:
        [kind] = self.chance.choices(list(KINDS), list(KINDS.values()))
        return Story(kind, self.chance.choice(list(self.queues)))

    async def _tell(self, story: Story) -> None:
        steps = self._steps()
        story.steps = [f"{name} at {moment:.3f}" for moment, name, _ in steps]
        await self._publish(story)
        try:
            with anyio.fail_after(BOUND + LATEST_STEP):
                async with anyio.create_task_group() as group:
                    group.start_soon(self._wait, story)
                    for moment, name, step in steps:
                        self.done[name] += 1
                        group.start_soon(self._after, moment, step, story)
                await self._forget(story)
        except TimeoutError:
            self.oddities.append(f"hangs: {story}")
        else:
            page = self.diary.read().get(story.task_id) or Page()
            for problem in story.problems(page):
                self.oddities.append(f"{problem}: {story} {page}")
        self.stories += 1
        self.outcomes.update(str(answer.outcome) for answer in story.answers[:1])

    def _steps(
        self,
    ) -> list[tuple[float, str, Callable[[Story], Coroutine[Any, Any, None]]]]:
        """Return when to do what, the last of it an abort: most tasks wait for one."""
        steps = {
            "abort": self._abort,
            "wait": self._wait,
            "cancel a wait": self._cancel_wait,
            "cancel a wait, aborting": self._cancel_wait_aborting,
            "revoke": self._revoke,
        }
        names = self.chance.choices(
            list(steps), (30, 30, 20, 10, 10), k=self.chance.randrange(4)
        )
        moments = [self.chance.uniform(0, LATEST_STEP) for _ in names]
        # Some come as close to each other as they can.
        if self.chance.random() < 0.3:
            moments = [min(moments, default=0)] * len(names)
        chosen = [
            (at, name, steps[name]) for at, name in zip(moments, names, strict=True)
        ]
        last = max(moments, default=0) + self.chance.uniform(0, 0.2)
        return [*chosen, (last, "abort", self._abort)]

    async def _publish(self, story: Story) -> None:
        seconds = self.chance.uniform(0, LONGEST_TASK)
        args = {"short": (seconds,), "blind": (seconds,)}.get(
            story.kind,
            (0,) if story.kind in {"raising", "returning", "failing"} else (),
        )
        app = self.queues[story.queue]
        await asyncio.to_thread(app.send_task, story.kind, args, task_id=story.task_id)

    async def _after(
        self,
        moment: float,
        step: Callable[[Story], Coroutine[Any, Any, None]],
        story: Story,
    ) -> None:
        await anyio.sleep(moment)
        await step(story)

    async def _abort(self, story: Story) -> None:
        answer = await self._abort_once(story)
        # See Story._of_waits(): the task may run on.
        while answer.receipt.state == states.REVOKED and not story.endings:
            await anyio.sleep(TICK)
            answer = await self._abort_once(story)

    async def _abort_once(self, story: Story) -> Answer:
        called = clock()
        receipt = await self.client.abort(story.task_id, reason=story.kind)
        answer = Answer(called, clock(), receipt)
        story.answers.append(answer)
        if receipt.is_requested:
            answer.was_seen = await receipt.seen() is not None
            answer.seen_after = clock() - called
            answer.outcome = await receipt.settled()
        return answer

    async def _wait(self, story: Story) -> None:
        try:
            value = await self.client.wait(story.task_id)
        except TaskAborted:
            ending = "TaskAborted"
        except Exception as error:  # noqa: BLE001 - the task's own
            ending = type(error).__name__
        else:
            ending = f"value {value}"
        story.endings.append(ending)

    async def _cancel_wait(self, story: Story) -> None:
        with anyio.move_on_after(self.chance.uniform(0, 0.2)):
            await self._wait(story)

    async def _cancel_wait_aborting(self, story: Story) -> None:
        story.is_aborted_by_wait = True
        with anyio.move_on_after(self.chance.uniform(0, 0.2)), suppress(Exception):
            await self.client.wait(story.task_id, abort_on_cancel=True)

    async def _revoke(self, story: Story) -> None:
        story.is_revoked = True
        control = self.queues[story.queue].control
        await asyncio.to_thread(control.revoke, story.task_id)

    async def _forget(self, story: Story) -> None:
        """Forget the result: a later wait for an aborted task has an end, too."""
        if self.chance.random() < FORGETTING:
            self.done["forget"] += 1
            result = self.client.result(story.task_id)
            await asyncio.to_thread(result.forget)
            if any(answer.receipt.is_requested for answer in story.answers):
                try:
                    await self.client.wait(story.task_id)
                except Exception as error:  # noqa: BLE001 - each is an end
                    self.endings[type(error).__name__] += 1
                else:
                    self.endings["a value"] += 1
