"""Plays one branch: a screenshot, the model's words, the agent's actions, and so on until it ends.

A branch that has turns already (it is resumed, tried again after a fault, or forked) is first brought to its place: its
actions are done again in a fresh environment, and each screenshot on the way must be the one in the trace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

from star_kv_sglang.tools.actions import Action, ActionKind
from star_kv_sglang.tools.chat import Completion, RequestError
from star_kv_sglang.tools.rollout.agent import Agent, NoActionError, View, png_size
from star_kv_sglang.tools.rollout.asking import Model
from star_kv_sglang.tools.rollout.conversation import Conversation
from star_kv_sglang.tools.rollout.environment import (
    ActionRefusedError,
    Environment,
    EnvironmentFault,
    InstructingEnvironment,
    Score,
    Suite,
)
from star_kv_sglang.tools.rollout.folder import RolloutFolder
from star_kv_sglang.tools.rollout.settings import RolloutSettings
from star_kv_sglang.tools.rollout.stopwatch import Stopwatch
from star_kv_sglang.tools.rollout.trace import Branch, BranchResult, End, EndRow, Trace, TurnRow

_ENDING: Final = frozenset({ActionKind.TERMINATE, ActionKind.ANSWER})
"""Actions by which an agent says that it has finished."""
_REFUSALS: Final = (NoActionError, ActionRefusedError)
"""Of a reply: they cost a turn."""

_T = TypeVar("_T")


class Watcher:
    """Is told how a rollout goes on; the command line draws a progress display."""

    def start(self, branch: Branch, num_turns: int) -> None:
        """A branch begins, with so many turns behind it."""

    def turn(self, branch: Branch, row: TurnRow) -> None:
        """A branch has played a turn."""

    def fault(self, branch: Branch, text: str) -> None:
        """Something went wrong with a branch, and it is tried again."""

    def wait(self, text: str) -> None:
        """The server cannot be reached, and is waited for."""

    def end(self, result: BranchResult) -> None:
        """A branch has ended."""


@dataclass(frozen=True, slots=True)
class Place:
    """An environment and a conversation that stand at the same turn."""

    environment: Environment
    conversation: Conversation
    goal: str
    score: Score


@dataclass(slots=True)
class _Tries:
    """Environments that a branch has used up."""

    faults: int = 0
    opening_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Player:
    """Plays branches.

    Attributes:
        suite, agent, model, settings: What is played, by whom.
        folder: Where the traces go.
        watcher: Is told.
        shares_first_turn: Whether several branches of one origin ask the same at their first turn.
    """

    suite: Suite
    agent: Agent
    model: Model
    settings: RolloutSettings
    folder: RolloutFolder
    watcher: Watcher = field(default_factory=Watcher)
    shares_first_turn: bool = True

    async def play(self, branch: Branch, max_turns: int, rows: tuple[TurnRow, ...] = ()) -> BranchResult:
        """Play a branch from where its trace ends.

        Args:
            branch: Which.
            max_turns: Most turns that it may have, those of ``rows`` included.
            rows: What it took over from its parent.

        Raises:
            ServerGoneError: The server cannot be reached; the trace holds what was played.
            RolloutError: The trace cannot be used.
        """
        with self.folder.trace(branch, rows) as trace:
            if trace.end is not None:
                result = BranchResult(branch, tuple(trace.rows), trace.end)
            else:
                self.watcher.start(branch, len(trace.rows))
                result = await self._play_on(branch, trace, max_turns)
        self.watcher.end(result)
        return result

    async def _play_on(self, branch: Branch, trace: Trace, max_turns: int) -> BranchResult:
        tries = _Tries()
        while True:
            try:
                end = await self._try(branch, trace, max_turns, tries)
                return trace.finish(self._end_row(trace, end, tries))
            except (EnvironmentFault, RequestError) as error:
                text = " ".join(str(error).split())
                self.folder.add_fault(branch, text)
                # A request that is refused once is refused again; the client has tried what can pass.
                if isinstance(error, RequestError) or tries.faults >= self.settings.retries:
                    return trace.finish(self._end_row(trace, End.FAILED, tries, text))
                tries.faults += 1
                self.watcher.fault(branch, text)

    async def _try(self, branch: Branch, trace: Trace, max_turns: int, tries: _Tries) -> End:
        """Play in a fresh environment until the branch ends.

        Raises:
            EnvironmentFault: Another environment may help.
        """
        started = time.perf_counter()
        async with self._opened(branch) as environment:
            place = await self._come_to_place(branch, trace, environment)
            tries.opening_s += time.perf_counter() - started
            while True:
                end = self._end_of(trace, place.score, max_turns)
                if end is not None:
                    self.folder.keep_conversation(branch, place.conversation.messages)
                    return end
                place = await self._play_turn(branch, trace, place)

    def _end_of(self, trace: Trace, score: Score, max_turns: int) -> End | None:
        if score.done:
            return End.DONE
        if trace.rows and any(action.kind in _ENDING for action in trace.rows[-1].actions):
            return End.FINISHED
        last = trace.rows[-self.settings.max_mistakes :]
        if len(last) == self.settings.max_mistakes and all(row.error is not None for row in last):
            return End.GAVE_UP
        return End.TURNS if len(trace.rows) >= max_turns else None

    @asynccontextmanager
    async def _opened(self, branch: Branch) -> AsyncIterator[Environment]:
        manager = self.suite.open(branch.task)
        opening_s = self.settings.opening_timeout_s
        environment = await self._ask_environment("opening it", manager.__aenter__, opening_s)
        try:
            yield environment
        finally:
            # What broke may break again while it is put away, and that changes nothing.
            try:
                await self._ask_environment("closing it", lambda: manager.__aexit__(None, None, None))
            except EnvironmentFault as fault:
                self.folder.add_fault(branch, str(fault))

    async def _come_to_place(self, branch: Branch, trace: Trace, environment: Environment) -> Place:
        goal = await self._ask_environment("its beginning", lambda: environment.reset(branch.seed))
        score = await self._ask_environment("its score", environment.score)
        conversation: Conversation | None = None
        for row in trace.rows:
            png = await self._ask_environment("a screenshot", environment.screenshot)
            if self.folder.keep_screen(png) != row.screen:
                raise EnvironmentFault(
                    f"the environment does not repeat itself: turn {row.turn} shows another screen than in the trace"
                )
            conversation = conversation or Conversation(self.agent, goal, png_size(png))
            conversation.show(png, await self._instruction(environment))
            conversation.hear(row.said, row.error)
            try:
                for action in row.actions:
                    if action.kind not in _ENDING:
                        step = partial(environment.step, action)
                        await self._ask_environment("an action", step, passes=(ActionRefusedError,))
            except ActionRefusedError as error:
                raise EnvironmentFault(
                    f"the environment does not repeat itself: turn {row.turn} refuses what it did in the trace "
                    f"({error})"
                ) from error
            score = await self._ask_environment("its score", environment.score)
        if conversation is None:
            first = await self._ask_environment("a screenshot", environment.screenshot)
            conversation = Conversation(self.agent, goal, png_size(first))
        return Place(environment, conversation, goal, score)

    async def _play_turn(self, branch: Branch, trace: Trace, place: Place) -> Place:
        watch, turn, environment = Stopwatch(), len(trace.rows), place.environment
        with watch.in_environment():
            png = await self._ask_environment("a screenshot", environment.screenshot)
            instruction = await self._instruction(environment)
        screen, size = self.folder.keep_screen(png), png_size(png)
        place.conversation.show(png, instruction)
        shared = self.shares_first_turn and turn == branch.first_turn
        random = Random(f"rollout {branch.seed} {branch.task} {branch.name} {turn}")
        asked = await self.model.ask(
            place.conversation.messages, seed=random.getrandbits(31), origin=branch.origin if shared else None
        )
        watch.server_s += asked.completion.latency_s
        watch.waiting_s += asked.waiting_s
        reply = asked.completion.text.strip()
        view = View(environment, branch.task, place.goal, turn, size, random)
        with watch.in_environment():
            actions, done, error = await self._act(reply, view)
            score = await self._ask_environment("its score", environment.score)
        said = self.agent.history_text(reply, actions, size)
        row = TurnRow(
            turn=turn,
            screen=screen,
            reply=reply,
            said=said,
            actions=done,
            error=error,
            reward=score.reward,
            done=score.done,
            measured={**watch.read(), **_account(asked.completion)},
        )
        trace.add(row)
        place.conversation.hear(said, error)
        self.watcher.turn(branch, row)
        return Place(environment, place.conversation, place.goal, score)

    async def _act(self, reply: str, view: View) -> tuple[tuple[Action, ...], tuple[Action, ...], str | None]:
        """What the reply says, what was done of it, and why not all."""
        try:
            think = partial(self.agent.actions, reply, view)
            actions = await self._ask_environment("the agent", think, passes=_REFUSALS)
        except _REFUSALS as error:
            return (), (), " ".join(str(error).split())
        done: list[Action] = []
        for action in actions:
            if done and (await self._ask_environment("its score", view.environment.score)).done:
                break
            try:
                if action.kind not in _ENDING:
                    refuse_outside(action)
                    step = partial(view.environment.step, action)
                    await self._ask_environment("an action", step, passes=(ActionRefusedError,))
            except ActionRefusedError as error:
                return actions, tuple(done), " ".join(str(error).split())
            done.append(action)
        return actions, tuple(done), None

    async def _instruction(self, environment: Environment) -> str:
        if not isinstance(environment, InstructingEnvironment):
            return ""
        return await self._ask_environment("its instruction", environment.instruction)

    async def _ask_environment(
        self,
        what: str,
        ask: Callable[[], Awaitable[_T]],
        limit_s: float | None = None,
        passes: tuple[type[Exception], ...] = (),
    ) -> _T:
        """Await something of an environment, which others wrote: it may hang, and what it raises is its fault, but for
        what ``passes``.
        """
        limit = self.settings.environment_timeout_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit):
                return await ask()
        except EnvironmentFault:
            raise
        except passes:
            raise
        except TimeoutError as error:
            raise EnvironmentFault(f"the environment hangs: {what} took more than {limit:g} s") from error
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise EnvironmentFault(f"the environment broke at {what}: {type(error).__name__}: {first}") from error

    def _end_row(self, trace: Trace, end: End, tries: _Tries, error: str | None = None) -> EndRow:
        return EndRow(
            end=end,
            turns=len(trace.rows),
            reward=trace.rows[-1].reward if trace.rows else 0.0,
            error=error,
            measured={"opening_s": round(tries.opening_s, 6), "retries": tries.faults},
        )


def refuse_outside(action: Action) -> None:
    """Refuse an action that points outside the screen.

    Raises:
        ActionRefusedError: It does.
    """
    for point in (action.point, action.end):
        if point is not None and not all(0 <= value <= 1 for value in point):
            x, y = point
            raise ActionRefusedError(
                f"{action.kind.value} at ({x:.2f}, {y:.2f}) is outside the screen, whose corners are (0, 0) and (1, 1)"
            )


def _account(completion: Completion) -> dict[str, Any]:
    return {
        "request_id": completion.request_id,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "cached_tokens": completion.cached_tokens,
        "completion_tokens": completion.completion_tokens,
    }
