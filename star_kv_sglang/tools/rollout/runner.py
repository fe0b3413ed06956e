"""Runs the branches: a shared beginning once, then every branch on its own, all at the same time."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from star_kv_sglang.tools.chat import ChatClient, ChatError, Completion, Message
from star_kv_sglang.tools.rollout.errors import RolloutError
from star_kv_sglang.tools.rollout.pool import FULL, PoolSample, policy_of, sampling
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question, Trajectory, Turn

SHARE = {"kv_share": True}
"""Per-request parameter: what this prompt leaves in the tree belongs to all branches and is not to be pruned."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, asked and answered. ``branch``, ``turn`` and ``index`` (within the turn) count from 0."""

    branch: int
    turn: int
    index: int
    question: Question
    completion: Completion

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for the same question in another run."""
        return self.branch, self.turn, self.index

    @property
    def correct(self) -> bool:
        """Whether the reply counts."""
        return is_correct(self.question, self.completion.text)


@dataclass(frozen=True, slots=True)
class Rollout:
    """What came out.

    Attributes:
        policy: the server's KV policy.
        answers: in the order of branch, turn, question; those of the shared turns once, as branch 0.
        samples: the pool over time; the first was taken before the first request, the last after the last one.
        num_branches, num_turns, num_shared_turns: its size.
        wall_s: seconds from the first request to the last answer.
    """

    policy: str
    answers: tuple[Answer, ...]
    samples: tuple[PoolSample, ...]
    num_branches: int
    num_turns: int
    num_shared_turns: int
    wall_s: float

    @property
    def turns_run(self) -> int:
        """Turns that were sent to the server; shared ones count once."""
        return self.num_shared_turns + self.num_branches * (self.num_turns - self.num_shared_turns)


def select(trajectories: Sequence[Trajectory], num_branches: int | None, num_turns: int | None) -> list[Trajectory]:
    """The first branches and turns of a file; all of them by default.

    Raises:
        RolloutError: more are asked for than the file holds, or the branches differ in length.
    """
    branches = len(trajectories) if num_branches is None else num_branches
    if not 1 <= branches <= len(trajectories):
        raise RolloutError(f"--branches {branches}: the file holds {len(trajectories)} trajectories")
    chosen = trajectories[:branches]
    shortest = min(len(trajectory.turns) for trajectory in chosen)
    turns = shortest if num_turns is None else num_turns
    if not 1 <= turns <= shortest:
        raise RolloutError(f"--turns {turns}: the shortest of these trajectories has {shortest} turns")
    return [replace(trajectory, turns=trajectory.turns[:turns]) for trajectory in chosen]


def count_shared_turns(trajectories: Sequence[Trajectory]) -> int:
    """How many leading turns are the same in all branches; 0 for a single branch."""
    if len(trajectories) < 2:
        return 0
    count = 0
    for turns in zip(*(trajectory.turns for trajectory in trajectories), strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        count += 1
    return count


async def run(
    client: ChatClient,
    trajectories: Sequence[Trajectory],
    *,
    max_tokens: int = 8,
    sample_interval_s: float = 0.5,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> Rollout:
    """Runs every branch to its end.

    The turns that all branches begin with are sent once, and marked as shared when the server runs a KV policy; the
    branches then continue that conversation in parallel. A conversation only ever grows: each question is a user
    message, each reply an assistant message behind it.

    Args:
        trajectories: one for each branch, as many turns in each.
        on_answer: called after each reply.

    Raises:
        RolloutError: a request of a branch failed; the branches still running are cancelled.
        ChatError: the server does not tell about itself or its pool.
    """
    num_shared, num_turns = count_shared_turns(trajectories), len(trajectories[0].turns)
    policy = policy_of(await client.server_info())
    conversation = _Conversation(client, max_tokens, on_answer)
    branches: list[asyncio.Task[list[Answer]]] = []
    async with sampling(client, interval_s=sample_interval_s) as samples:
        started = time.perf_counter()
        shared_turns = trajectories[0].turns[:num_shared]
        custom_params = None if policy == FULL else SHARE
        answers = await conversation.continue_with(0, 0, shared_turns, custom_params)
        async with asyncio.TaskGroup() as group:
            for number, trajectory in enumerate(trajectories):
                fork = conversation.fork()
                turns = trajectory.turns[num_shared:]
                branches.append(group.create_task(fork.continue_with(number, num_shared, turns, None)))
        wall_s = time.perf_counter() - started
    for branch in branches:
        answers += branch.result()
    return Rollout(policy, tuple(answers), tuple(samples), len(trajectories), num_turns, num_shared, wall_s)


class _Conversation:
    """The messages of one branch so far."""

    def __init__(
        self, client: ChatClient, max_tokens: int, on_answer: Callable[[Answer], None], messages: Sequence[Message] = ()
    ) -> None:
        self._client = client
        self._max_tokens = max_tokens
        self._on_answer = on_answer
        self._messages = list(messages)

    def fork(self) -> _Conversation:
        return _Conversation(self._client, self._max_tokens, self._on_answer, self._messages)

    async def continue_with(
        self, branch: int, first_turn: int, turns: Sequence[Turn], custom_params: dict[str, bool] | None
    ) -> list[Answer]:
        answers = []
        for number, turn in enumerate(turns, start=first_turn):
            for index, question in enumerate(turn.questions):
                self._messages.append(user_message(turn, question, with_image=index == 0))
                try:
                    completion = await self._client.chat(
                        self._messages, max_tokens=self._max_tokens, custom_params=custom_params
                    )
                except ChatError as error:
                    raise RolloutError(f"branch {branch}, turn {number}, {question.text!r}: {error}") from error
                completion = replace(completion, text=completion.text.strip())
                self._messages.append({"role": "assistant", "content": completion.text})
                answer = Answer(branch, number, index, question, completion)
                answers.append(answer)
                self._on_answer(answer)
        return answers


def user_message(turn: Turn, question: Question, *, with_image: bool) -> Message:
    """A question as a chat message, behind the turn's tag and screenshot where it is the turn's first."""
    if not with_image:
        return {"role": "user", "content": question.text}
    url = "data:image/png;base64," + base64.b64encode(turn.image_png).decode("ascii")
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": turn.step},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question.text},
        ],
    }
