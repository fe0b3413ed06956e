"""From a folder of data and a server to a folder of results: what ``star-kv eval run`` and ``sweep`` do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.eval.benchmarks.base import Benchmark
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.runner import Protocol, Settings, pending, run
from star_kv_sglang.tools.eval.samples import Dataset
from star_kv_sglang.tools.eval.store import RUN_FILE, Result, RunFolder, load_run, refuse_other_run


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server is reached.

    Attributes:
        base_url: with or without ``/v1``.
        api_key: a bearer token, or None.
        model: the served name; None for the first that the server lists.
        timeout_s: seconds that a request may take.
        retries: further attempts of a request that the server was too busy for.
        concurrency: requests at a time.
    """

    base_url: str
    api_key: str | None = None
    model: str | None = None
    timeout_s: float = 600.0
    retries: int = 3
    concurrency: int = 16


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked.

    Attributes:
        benchmark, family: registered ones.
        dataset: the benchmark, loaded with ``history_frames``.
        protocol, history_frames, max_tokens, cache_salt: as in `Settings`.
    """

    benchmark: Benchmark
    family: ModelFamily
    dataset: Dataset
    protocol: Protocol
    history_frames: int | None
    max_tokens: int
    cache_salt: bool = True


class Watcher:
    """Is told how a run goes on; the command line draws a progress bar."""

    def start(self, total: int, remaining: int) -> None:
        """The run begins: so many scored steps, of which so many are still to be asked."""

    def result(self, result: Result) -> None:
        """A sample is done."""


def load(benchmark: Benchmark, data: Path, history_frames: int | None, limit: int | None) -> Dataset:
    """Loads a benchmark, or its first ``limit`` episodes.

    Raises:
        DataError: the data cannot be used.
    """
    dataset = benchmark.load(data, history_frames)
    return dataset if limit is None else replace(dataset, episodes=dataset.episodes[:limit])


def evaluate(task: Task, server: ServerOptions, out: Path, label: str | None, watcher: Watcher) -> None:
    """Asks a server all that ``out`` does not hold yet.

    Args:
        label: what to call the run in tables; by default the folder's name.

    Raises:
        EvalError: the folder holds another run.
        ServerGoneError: the server cannot be reached; what is done is kept.
    """
    asyncio.run(_evaluate(task, server, out, label, watcher))


async def _evaluate(task: Task, server: ServerOptions, out: Path, label: str | None, watcher: Watcher) -> None:
    async with ChatClient(
        server.base_url,
        api_key=server.api_key,
        timeout_s=server.timeout_s,
        retries=server.retries,
        when_gone="start the server or mend --base-url, then run the same command again: it goes on where it stopped",
    ) as client:
        model = server.model if server.model is not None else await client.model()
        settings = _settings(task, model, await client.kv_settings())
        with RunFolder(out, settings.describe(task.dataset), label or out.resolve().name) as folder:
            folder.add_problems(task.dataset.problems)
            watcher.start(task.dataset.num_scored, pending(task.dataset, folder))
            await run(client, settings, task.dataset, folder, concurrency=server.concurrency, on_result=watcher.result)


def is_complete(task: Task, out: Path) -> bool:
    """Whether a folder holds a score of every sample of a task; it does not matter from which server.

    Raises:
        EvalError: it holds a run of something else.
    """
    if not (out / RUN_FILE).exists():
        return False
    refuse_other_run(out, _settings(task, "", {}).describe(task.dataset), ignore=("model", "server"))
    return sum(result.scored for result in load_run(out).results) == task.dataset.num_scored


def _settings(task: Task, model: str, server: Mapping[str, Any]) -> Settings:
    return Settings(
        benchmark=task.benchmark,
        family=task.family,
        model=model,
        protocol=task.protocol,
        history_frames=task.history_frames,
        max_tokens=task.max_tokens,
        cache_salt=task.cache_salt,
        server=server,
    )
