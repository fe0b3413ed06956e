"""Asks a server every step of a benchmark and scores the replies.

Two protocols. *Stateless*: the whole prompt of a step is prefilled on its own, so a pruning server sees its question;
every step has its own cache salt. *Persistent*: the turns of an episode are asked in order under one salt, so what the
server pruned at earlier turns is gone. Episodes never share anything in the server's cache: results do not depend on
the order in which they are asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from star_kv_sglang.tools.actions import Action
from star_kv_sglang.tools.chat import ChatClient, Completion, RequestError, ServerGoneError
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark
from star_kv_sglang.tools.eval.conversation import build_messages, sent_size
from star_kv_sglang.tools.eval.errors import EvalError, ReplyError
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.samples import Dataset, Episode, Step
from star_kv_sglang.tools.eval.store import Result, RunFolder, Status


class Protocol(StrEnum):
    """What becomes of the server's cache between the turns of an episode."""

    STATELESS = "stateless"
    PERSISTENT = "persistent"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked, and how.

    Attributes:
        benchmark, family: registered ones.
        model: the name that the server knows it by.
        protocol: see the module.
        history_frames: earlier screenshots in a prompt; None for all.
        max_tokens: the longest reply.
        cache_salt: send salts. Without them a server that caches prefixes mixes the protocols.
        server: what the server says of its cache policy.
    """

    benchmark: Benchmark
    family: ModelFamily
    model: str
    protocol: Protocol
    history_frames: int | None
    max_tokens: int
    cache_salt: bool = True
    server: Mapping[str, Any] | None = None

    def describe(self, dataset: Dataset) -> dict[str, Any]:
        """What must be the same for a run to be resumed, for ``run.json``."""
        bounds, prompt = self.family.bounds, self.family.system_prompt
        return {
            "benchmark": self.benchmark.name,
            "headline": self.benchmark.headline,
            "samples": dataset.num_scored,
            "dataset": fingerprint(dataset),
            "family": self.family.name,
            "model": self.model,
            "protocol": self.protocol.value,
            "history_frames": self.history_frames,
            "max_tokens": self.max_tokens,
            "cache_salt": self.cache_salt,
            "pixels": [bounds.factor, bounds.min_pixels, bounds.max_pixels],
            "system_prompt": None if prompt is None else _digest(prompt),
            "server": dict(self.server or {}),
        }


@dataclass(frozen=True, slots=True)
class _Turn:
    episode: Episode
    index: int

    @property
    def step(self) -> Step:
        return self.episode.steps[self.index]


_Job = list[_Turn]
"""Turns that are asked one after the other under one salt."""


async def run(
    client: ChatClient,
    settings: Settings,
    dataset: Dataset,
    folder: RunFolder,
    *,
    concurrency: int = 16,
    on_result: Callable[[Result], None] = lambda result: None,
) -> None:
    """Asks what ``folder`` does not hold yet, ``concurrency`` requests at a time, and adds the results to it.

    Raises:
        ServerGoneError: the server cannot be reached; what is done is kept.
    """
    jobs = iter([*_jobs(dataset, folder, settings.protocol)])
    nonce = uuid.uuid4().hex

    async def work() -> None:
        for job in jobs:
            salt = f"{nonce}/{job[0].step.id}" if settings.cache_salt else None
            async for result in _ask_in_order(client, settings, job, salt):
                folder.add(result)
                on_result(result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, concurrency)):
                group.create_task(work())
    except ExceptionGroup as failures:
        # One reason is enough: workers that lose the same server all say the same.
        raise failures.exceptions[0] from failures


def pending(dataset: Dataset, folder: RunFolder) -> int:
    """Scored steps that the folder holds no score of."""
    ids = (step.id for episode in dataset.episodes for step in episode.steps if step.scored)
    return sum(not _done(folder, sample) for sample in ids)


def fingerprint(dataset: Dataset) -> str:
    """The same for the same samples in the same order."""
    lines = [
        f"{episode.id}\t{episode.task}\t{step.id}\t{step.instruction}\t{step.scored}"
        for episode in dataset.episodes
        for step in episode.steps
    ]
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _done(folder: RunFolder, sample: str) -> bool:
    return sample in folder.done and folder.done[sample].scored


def _jobs(dataset: Dataset, folder: RunFolder, protocol: Protocol) -> Iterator[_Job]:
    for episode in dataset.episodes:
        turns = [_Turn(episode, index) for index in range(len(episode.steps))]
        missing = [turn for turn in turns if turn.step.scored and not _done(folder, turn.step.id)]
        if not missing:
            continue
        if protocol is Protocol.STATELESS:
            yield from ([turn] for turn in missing)
        else:
            # The turns before a missing one are asked again: the server's state after them cannot be stored.
            yield turns[: missing[-1].index + 1]


async def _ask_in_order(client: ChatClient, settings: Settings, job: _Job, salt: str | None) -> AsyncIterator[Result]:
    broken = ""
    for turn in job:
        if broken:
            if turn.step.scored:
                yield _failed(turn, f"not asked: an earlier turn of the episode failed ({broken})")
            continue
        try:
            completion = await _ask(client, settings, turn, salt)
        except ServerGoneError:
            raise
        except (EvalError, RequestError) as error:
            broken = str(error)
            if turn.step.scored:
                yield _failed(turn, broken)
            continue
        if turn.step.scored:
            yield _judge(settings, turn, completion)


async def _ask(client: ChatClient, settings: Settings, turn: _Turn, salt: str | None) -> Completion:
    try:
        messages = await asyncio.to_thread(
            build_messages, settings.family, settings.benchmark.kind, turn.episode, turn.index, settings.history_frames
        )
    except OSError as error:
        raise RequestError(f"a screenshot cannot be read: {error}") from error
    # A turn that only stands in the history is prefilled, so that the server prunes after it, and says one token.
    max_tokens = settings.max_tokens if turn.step.scored else 1
    return await client.chat(messages, model=settings.model, max_tokens=max_tokens, cache_salt=salt)


def _judge(settings: Settings, turn: _Turn, completion: Completion) -> Result:
    status, error = Status.OK, ""
    actions: tuple[Action, ...] = ()
    try:
        sent = sent_size(turn.episode, turn.index)
        actions = settings.family.parse(settings.benchmark.kind, completion.text, sent)
    except ReplyError as reason:
        status, error = Status.UNREADABLE, str(reason)
    score = settings.benchmark.score(turn.step, actions, completion.text)
    return Result(
        sample=turn.step.id,
        episode=turn.episode.id,
        status=status,
        score=score.value,
        parts=dict(score.parts),
        groups=dict(turn.step.groups),
        reply=completion.text,
        actions=[action.to_json() for action in actions],
        error=error,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        cached_tokens=completion.cached_tokens,
        completion_tokens=completion.completion_tokens,
        latency_s=round(completion.latency_s, 4),
    )


def _failed(turn: _Turn, error: str) -> Result:
    return Result(
        sample=turn.step.id, episode=turn.episode.id, status=Status.FAILED, groups=dict(turn.step.groups), error=error
    )
