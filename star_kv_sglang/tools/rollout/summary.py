"""From a rollout's answers and pool samples to the figures of one column, and from columns to a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from star_kv_sglang.tools.chat import HITS_UNKNOWN
from star_kv_sglang.tools.rollout.pool import FULL, PoolSample
from star_kv_sglang.tools.rollout.runner import Rollout

UNKNOWN = "not reported"


@dataclass(frozen=True, slots=True)
class Summary:
    """One rollout in figures. What the server did not report is None.

    Attributes:
        name: heading of its column.
        pool_peak, pool_end: KV slots in use, at most and after the last turn.
        shared_tokens, private_tokens: slots of the shared beginning and of all branches after it, at the end.
        pruned_tokens: slots freed by pruning during the rollout.
        hit_rate: prompt tokens found in the radix tree / prompt tokens, over all requests.
        right, asked: answers per kind of question, and under ``recall (moved)`` those of the recall questions that
            cannot be answered from the screen in view.
        turns_per_s: turns of all branches in a second.
        latency_s: mean seconds a request.
    """

    name: str
    pool_peak: int | None
    pool_end: int | None
    shared_tokens: int | None
    private_tokens: int | None
    pruned_tokens: int | None
    hit_rate: float | None
    right: dict[str, int]
    asked: dict[str, int]
    turns_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison: a label and a cell for each column."""

    label: str
    cells: tuple[str, ...]


def summarize(rollout: Rollout, name: str) -> Summary:
    """The figures of one rollout.

    A server without a policy does not split its tree: there the shared tokens are the positions of the shared turns
    (their last prompt and reply, all but the reply's last token, whose KV is never computed), the private tokens all
    others that the rollout added to the pool.
    """
    first, last = rollout.samples[0], rollout.samples[-1]
    resident = [sample.resident_tokens for sample in rollout.samples if sample.resident_tokens is not None]
    shared, private = last.shared_tokens, last.private_tokens
    pruned = _difference(last.pruned_tokens, first.pruned_tokens)
    if rollout.policy == FULL:
        shared, private = _split(rollout, first, last)
        pruned = 0
    completions = [answer.completion for answer in rollout.answers]
    cached = [completion.cached_tokens for completion in completions if completion.cached_tokens is not None]
    all_reported = len(cached) == len(completions)
    asked, right = _count(rollout)
    return Summary(
        name=name,
        pool_peak=max(resident, default=None),
        pool_end=last.resident_tokens,
        shared_tokens=shared,
        private_tokens=private,
        pruned_tokens=pruned,
        hit_rate=sum(cached) / sum(completion.prompt_tokens for completion in completions) if all_reported else None,
        right=right,
        asked=asked,
        turns_per_s=rollout.turns_run / rollout.wall_s,
        latency_s=sum(completion.latency_s for completion in completions) / len(completions),
    )


def compare(summaries: Sequence[Summary], rollouts: Sequence[Rollout]) -> list[Row]:
    """The table's rows, a column for each rollout; changed outputs are counted against the first."""
    rows = [
        _row("tokens in the pool, peak", [_count_cell(s.pool_peak) for s in summaries]),
        _row("tokens in the pool, end", [_count_cell(s.pool_end) for s in summaries]),
        _row("  shared by the branches", [_count_cell(s.shared_tokens) for s in summaries]),
        _row("  private to a branch", [_count_cell(s.private_tokens) for s in summaries]),
        _row("pruned", [_count_cell(s.pruned_tokens) for s in summaries]),
        _row("radix hit rate", [HITS_UNKNOWN if s.hit_rate is None else f"{s.hit_rate:.1%}" for s in summaries]),
    ]
    for kind in dict.fromkeys(kind for summary in summaries for kind in summary.asked):
        rows.append(_row(f"accuracy: {kind}", [_accuracy_cell(s, kind) for s in summaries]))
    rows.append(_row("turns per second", [f"{s.turns_per_s:.2f}" for s in summaries]))
    rows.append(_row("mean latency", [f"{s.latency_s:.2f} s" for s in summaries]))
    if len(rollouts) > 1:
        cells = ["" if index == 0 else _changed_cell(rollouts[0], rollout) for index, rollout in enumerate(rollouts)]
        rows.append(_row("outputs that changed", cells))
    return rows


def changed(reference: Rollout, other: Rollout) -> tuple[int, int]:
    """How many replies differ between two rollouts, of how many that both have."""
    texts = {answer.key: answer.completion.text for answer in reference.answers}
    common = [answer for answer in other.answers if answer.key in texts]
    return sum(texts[answer.key] != answer.completion.text for answer in common), len(common)


def _split(rollout: Rollout, first: PoolSample, last: PoolSample) -> tuple[int, int | None]:
    shared_turns = [answer for answer in rollout.answers if answer.turn < rollout.num_shared_turns]
    shared = 0
    if shared_turns:
        completion = shared_turns[-1].completion
        shared = completion.prompt_tokens + completion.completion_tokens - 1
    added = _difference(last.resident_tokens, first.resident_tokens)
    return shared, None if added is None else added - shared


def _count(rollout: Rollout) -> tuple[dict[str, int], dict[str, int]]:
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for answer in rollout.answers:
        kinds = [answer.question.kind]
        if answer.question.moved:
            kinds.append(f"{answer.question.kind} (moved)")
        for kind in kinds:
            asked[kind] += 1
            right[kind] += answer.correct
    return {kind: asked[kind] for kind in sorted(asked)}, {kind: right[kind] for kind in sorted(asked)}


def _difference(last: int | None, first: int | None) -> int | None:
    return None if last is None or first is None else last - first


def _row(label: str, cells: Sequence[str]) -> Row:
    return Row(label, tuple(cells))


def _count_cell(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _accuracy_cell(summary: Summary, kind: str) -> str:
    asked = summary.asked.get(kind, 0)
    return f"{summary.right[kind] / asked:.1%} ({summary.right[kind]} of {asked})" if asked else "none asked"


def _changed_cell(reference: Rollout, other: Rollout) -> str:
    differing, common = changed(reference, other)
    return f"{differing} of {common}"
