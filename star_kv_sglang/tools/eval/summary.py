"""What a run says, and what another run says against it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from star_kv_sglang.tools.eval.errors import RunFolderError
from star_kv_sglang.tools.eval.statistics import Estimate, PairedTest, bootstrap, paired_test
from star_kv_sglang.tools.eval.store import Result, Run, Status


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run.

    Attributes:
        label, benchmark, headline: what was run, and what the score is called.
        score: the mean over scored samples; None when there are none.
        parts: further figures of the benchmark.
        groups: table name, then group name, then its mean.
        num_unreadable, num_failed, num_problems: replies without an action (scored 0), requests without an answer and
            rows of the data set left out (neither scored).
        num_cut_off: replies that reached the token limit.
        mean_output_tokens, mean_prompt_tokens: over scored samples.
        cached_share: of the prompt tokens, found in the server's cache; None when the server does not say.
    """

    label: str
    benchmark: str
    headline: str
    score: Estimate | None
    parts: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]]
    num_unreadable: int
    num_failed: int
    num_problems: int
    num_cut_off: int
    mean_output_tokens: float
    mean_prompt_tokens: float
    cached_share: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against a reference run, on the samples that both have scored.

    Attributes:
        label: of the other run.
        reference, other: the two means, over the common samples.
        test: the difference and its test.
        groups: table name, then group name, then the test within the group.
        num_common: samples compared.
        num_replies_changed, num_actions_changed: samples whose words, or whose actions, differ.
        output_ratio: output tokens of the other run, as a multiple of the reference's.
    """

    label: str
    reference: Estimate
    other: Estimate
    test: PairedTest
    groups: dict[str, dict[str, PairedTest]]
    num_common: int
    num_replies_changed: int
    num_actions_changed: int
    output_ratio: float


def summarize(run: Run) -> Summary:
    """The figures of a run."""
    scored = [result for result in run.results if result.scored]
    prompt_tokens = sum(result.prompt_tokens for result in scored)
    cached = [result.cached_tokens for result in scored if result.cached_tokens is not None]
    part_names = sorted({name for result in scored for name in result.parts})
    return Summary(
        label=run.label,
        benchmark=str(run.settings["benchmark"]),
        headline=str(run.settings.get("headline", "score")),
        score=_estimate(scored, lambda result: result.score) if scored else None,
        parts={
            name: _estimate([r for r in scored if name in r.parts], lambda result, part=name: result.parts[part])  # type: ignore[misc]
            for name in part_names
        },
        groups={
            table: {group: _estimate(rows, lambda result: result.score) for group, rows in groups.items()}
            for table, groups in _tables(scored).items()
        },
        num_unreadable=sum(result.status is Status.UNREADABLE for result in scored),
        num_failed=len(run.results) - len(scored),
        num_problems=run.num_problems,
        num_cut_off=sum(result.finish_reason == "length" for result in scored),
        mean_output_tokens=_mean([result.completion_tokens for result in scored]),
        mean_prompt_tokens=_mean([result.prompt_tokens for result in scored]),
        cached_share=sum(cached) / prompt_tokens if cached and prompt_tokens else None,
    )


def compare(reference: Run, other: Run) -> Comparison:
    """Another run against a reference.

    Raises:
        RunFolderError: they are of different benchmarks, asked differently, or have no sample in common.
    """
    _refuse_mismatch(reference, other)
    before = {result.sample: result for result in reference.results if result.scored}
    after = {result.sample: result for result in other.results if result.scored}
    common = [sample for sample in before if sample in after]
    if not common:
        raise RunFolderError(f"{reference.folder} and {other.folder} have no scored sample in common")
    pairs = [(before[sample], after[sample]) for sample in common]
    length = sum(result.completion_tokens for result, _ in pairs)
    return Comparison(
        label=other.label,
        reference=_estimate([result for result, _ in pairs], lambda result: result.score),
        other=_estimate([result for _, result in pairs], lambda result: result.score),
        test=_test(pairs),
        groups={
            table: {group: _test([(before[r.sample], after[r.sample]) for r in rows]) for group, rows in groups.items()}
            for table, groups in _tables([result for result, _ in pairs]).items()
        },
        num_common=len(pairs),
        num_replies_changed=sum(one.reply != two.reply for one, two in pairs),
        num_actions_changed=sum([*one.actions] != [*two.actions] for one, two in pairs),
        output_ratio=sum(result.completion_tokens for _, result in pairs) / length if length else float("nan"),
    )


# What may differ between a run and its reference: the server's cache policy is what is compared.
_MUST_MATCH = ("benchmark", "dataset", "family", "history_frames", "max_tokens", "pixels", "system_prompt")


def _refuse_mismatch(reference: Run, other: Run) -> None:
    differing = [name for name in _MUST_MATCH if reference.settings.get(name) != other.settings.get(name)]
    if differing:
        lines = "; ".join(f"{n}: {reference.settings.get(n)!r} and {other.settings.get(n)!r}" for n in differing)
        raise RunFolderError(f"{reference.folder} and {other.folder} were not asked the same: {lines}")


def _estimate(results: Sequence[Result], value: Callable[[Result], float]) -> Estimate:
    return bootstrap([value(result) for result in results], [result.episode for result in results])


def _test(pairs: Sequence[tuple[Result, Result]]) -> PairedTest:
    return paired_test(
        [one.score for one, _ in pairs], [two.score for _, two in pairs], [one.episode for one, _ in pairs]
    )


def _tables(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    tables: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        for table, group in result.groups.items():
            tables.setdefault(table, {}).setdefault(group, []).append(result)
    return {table: dict(sorted(groups.items(), key=lambda item: _natural(item[0]))) for table, groups in tables.items()}


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts ``2 back`` before ``10 back``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
