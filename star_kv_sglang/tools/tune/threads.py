"""Which recorded turns follow each other: conversations as they are, requests by what their prompts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from star_kv_sglang.tools.tune.errors import RecordingError
from star_kv_sglang.tools.tune.recordings import (
    Reader,
    Said,
    Thread,
    Turn,
    asked_in_turn,
    is_trajectory_file,
    recorded_files,
    rows_of,
)


def load_threads(path: Path, limit: int | None = None) -> list[Thread]:
    """All threads of a folder or a file.

    Args:
        path: what was recorded.
        limit: only the first so many.

    Raises:
        RecordingError: something in it cannot be replayed, or nothing is in it.
    """
    reader = Reader()
    threads: list[Thread] = []
    files = recorded_files(path)
    root = path if path.is_dir() else path.parent
    for file in files:
        if limit is not None and len(threads) >= limit:
            break
        name = file.relative_to(root).with_suffix("").as_posix()
        if is_trajectory_file(file):
            threads += [Thread(label, turns) for label, turns in asked_in_turn(file, reader)]
        elif file.suffix == ".jsonl":
            turns = [reader.request(file, row, place) for place, row in rows_of(file)]
            chains = chained([turn for turn in turns if turn.pictures])
            width = len(str(len(chains)))
            threads += [Thread(f"{name}-{n:0{width}d}", chain) for n, chain in enumerate(chains, start=1)]
        else:
            threads += [Thread(name, reader.conversation(file, row, place)) for place, row in rows_of(file)]
    if not threads:
        raise RecordingError(f"{path}: none of its requests shows a screenshot; there is nothing to prune")
    names = [thread.name for thread in threads]
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise RecordingError(f"{path}: two files are called {again[0]} (.json and .jsonl); rename one of them")
    return threads[:limit]


def tasks_of(threads: Sequence[Thread]) -> dict[str, str]:
    """Threads that begin with the same prompt, as the branches of a rollout do, count as one: a name for each thread's.

    What changes in a turn that they share, or on screens that they all come to, is no independent finding.
    """
    first: dict[tuple[object, ...], str] = {}
    return {
        thread.name: first.setdefault(tuple((one.role, one.parts) for one in thread.turns[0].said), thread.name)
        for thread in threads
    }


def chained(requests: Sequence[Turn]) -> list[tuple[Turn, ...]]:
    """Requests in threads, one for each that nobody goes on from.

    A request goes on from the earlier one whose whole prompt it begins with, the longest of them. Where there is none,
    as an agent has taken old screenshots out, it goes on from the one with the same first words that it has most in
    common with, the latest of equals. The same request again is left out. A request that several threads pass through
    is compared in the first of them.

    Args:
        requests: in the order in which they were sent.
    """
    kept: list[Turn] = []
    parents: list[int | None] = []
    for request in requests:
        best: tuple[tuple[bool, int, int], int] | None = None
        repeated = False
        for number, earlier in enumerate(kept):
            common = _common(earlier.said, request.said)
            is_prefix = common == len(earlier.said)
            repeated = repeated or (is_prefix and common == len(request.said))
            if is_prefix or _beginning(earlier) == _beginning(request):
                candidate = ((is_prefix, common, number), number)
                best = candidate if best is None else max(best, candidate)
        if not repeated:
            kept.append(request)
            parents.append(None if best is None else best[1])
    leaves = [number for number in range(len(kept)) if number not in parents]
    seen: set[int] = set()
    chains: list[tuple[Turn, ...]] = []
    for leaf in leaves:
        path = [leaf]
        while (parent := parents[path[0]]) is not None:
            path.insert(0, parent)
        chains.append(tuple(replace(kept[one], scored=one not in seen) for one in path))
        seen.update(path)
    return chains


def _common(one: Sequence[Said], other: Sequence[Said]) -> int:
    """Messages that two prompts begin with."""
    common = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        common += 1
    return common


def _beginning(turn: Turn) -> tuple[str, ...]:
    """The words up to the first message of the user, which an agent keeps when it takes old screenshots out."""
    words: list[str] = []
    for one in turn.said:
        words += [part for part in one.parts or () if isinstance(part, str)]
        if one.role == "user":
            break
    return tuple(words)
