"""Plays a trajectory under a protocol and says which answers were right.

Persistent: the turns of a conversation follow each other over what the cache still holds of it; the agent keeps its own
replies. The questions of the last turn are branches that share this history, as branches of a rollout do: each sees it
as the turns before have left it, and none prunes it further.
Stateless: every question is a conversation of its own, sent whole, with the right answers in its history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.questions import SuiteTask, follow_up, task_of
from star_kv_sglang.tools.eval.suite.served import Reply, Shown, SuiteEngine
from star_kv_sglang.tools.eval.suite.vision import SeenScreen
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question, Trajectory


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's outcome.

    Attributes:
        task: what it measures.
        place: turn and number of the question, for example ``5.2``; the same in every cell.
        back: how many turns before the asking turn the recalled screen was shown.
        right: whether the reply is right.
        reply: what the model said.
    """

    task: SuiteTask
    place: str
    back: int
    right: bool
    reply: str


class HistoryLost(EvalError, RuntimeError):
    """The cache no longer held a conversation's history, or held what it must not; the cell would measure nothing."""


@dataclass(frozen=True, slots=True)
class Player:
    """One trajectory in one cell.

    Attributes:
        engine: answers.
        writer: writes the prompts.
        trajectory: what is shown and asked.
        screens: its screenshots behind the vision tower.
        budget: share of the visual tokens that stays; sent with each request.
        name: of the cell and the trajectory; requests and conversations are named by it.
        traced: the policy writes down what it keeps.
    """

    engine: SuiteEngine
    writer: PromptWriter
    trajectory: Trajectory
    screens: Sequence[SeenScreen]
    budget: float
    name: str
    traced: bool = False

    async def persistent(self) -> list[Answer]:
        """The turns one after the other, then the branches of the last."""
        answers: list[Answer] = []
        replies: list[str] = []
        known = 0
        for turn in self.trajectory.turns[:-1]:
            question = turn.questions[0]
            ids = self.writer.ids(self.trajectory, replies, question.text)
            reply = await self._ask(ids, len(replies) + 1, self.name, f"{len(replies)}.0")
            self._refuse_loss(reply, known)
            known = reply.prompt
            answers.append(_answer(question, f"{len(replies)}.0", reply))
            replies.append(reply.text)

        async def branch(number: int, question: Question) -> list[Answer]:
            return await self._recall(number, question, replies, self.name, known, share=True)

        questions = self.trajectory.turns[-1].questions
        branches = await asyncio.gather(*(branch(number, question) for number, question in enumerate(questions)))
        return answers + [answer for branch in branches for answer in branch]

    async def stateless(self) -> list[Answer]:
        """Every question on its own."""
        right = [turn.questions[0].answer for turn in self.trajectory.turns]
        last = len(self.trajectory.turns) - 1

        async def in_view(index: int) -> list[Answer]:
            question = self.trajectory.turns[index].questions[0]
            ids = self.writer.ids(self.trajectory, right[:index], question.text)
            reply = await self._ask(ids, index + 1, f"{self.name}~{index}", f"{index}.0")
            self._refuse_hit(reply, index + 1)
            return [_answer(question, f"{index}.0", reply)]

        async def recalled(number: int, question: Question) -> list[Answer]:
            return await self._recall(number, question, right[:last], f"{self.name}~{last}.{number}", None, share=False)

        groups = await asyncio.gather(
            *(in_view(index) for index in range(last)),
            *(recalled(number, question) for number, question in enumerate(self.trajectory.turns[-1].questions)),
        )
        return [answer for group in groups for answer in group]

    async def _recall(
        self, number: int, question: Question, replies: Sequence[str], conversation: str, known: int | None, share: bool
    ) -> list[Answer]:
        """A question of the last turn, and the one that goes with it; ``known`` None: nothing is cached."""
        last = len(self.trajectory.turns) - 1
        ids = self.writer.ids(self.trajectory, replies, question.text)
        reply = await self._ask(ids, last + 1, conversation, f"{last}.{number}", share=share)
        if known is None:
            self._refuse_hit(reply, last + 1)
        else:
            self._refuse_loss(reply, known)
        answers = [_answer(question, f"{last}.{number}", reply)]
        further = follow_up(question, self.trajectory.turns[-1].widgets)
        if further is not None:
            place = f"{last}.{number}+"
            ids = self.writer.ids(self.trajectory, replies, further.text)
            second = await self._ask(ids, last + 1, conversation if share else f"{conversation}+", place, share=share)
            right = answers[0].right and is_correct(further, second.text)
            answers.append(Answer(SuiteTask.TWO_SCREENS, place, question.back, right, second.text))
        return answers

    async def _ask(self, ids: list[int], num_shown: int, conversation: str, place: str, share: bool = False) -> Reply:
        custom: dict[str, Any] = {"kv_budget": self.budget, "kv_trace": self.traced}
        if share:
            custom["kv_share"] = True
        shown = [Shown(screen, conversation, index) for index, screen in enumerate(self.screens[:num_shown])]
        return await self.engine.ask(ids, shown, f"{conversation}@{place}", custom)

    def _refuse_loss(self, reply: Reply, known: int) -> None:
        if reply.cached < known:
            raise HistoryLost(
                f"{self.name}: a turn found {reply.cached} tokens of its history in the cache, not {known}; give the "
                "engine a larger pool or play fewer trajectories at a time"
            )

    def _refuse_hit(self, reply: Reply, num_shown: int) -> None:
        # What stands before the first screenshot is the same in all conversations.
        num_text = reply.prompt - sum(len(screen.embedding) for screen in self.screens[:num_shown])
        if reply.cached > num_text:
            raise HistoryLost(f"{self.name}: a stateless prompt found {reply.cached} of its tokens in the cache")


PLAY: dict[str, Callable[[Player], Any]] = {"persistent": Player.persistent, "stateless": Player.stateless}


def _answer(question: Question, place: str, reply: Reply) -> Answer:
    return Answer(task_of(question), place, question.back, is_correct(question, reply.text), reply.text)
