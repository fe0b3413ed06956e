"""Time to the first token of each turn of one branch at a time.

Image processing, which no policy touches, takes most of it, so the scheduler's part is reported beside the whole; and
the answer's other tokens say how long a step takes with the turn's history, for one branch.

Where servers of several policies run at the same time, they hold the same conversation one after the other, each time
another one first. What the machine does meanwhile then falls on all of them, and each repeat gives a ratio to stock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from star_kv_sglang.tools.bench.serve.client import Stream
from star_kv_sglang.tools.bench.serve.context import Context
from star_kv_sglang.tools.bench.serve.conversation import branch
from star_kv_sglang.tools.bench.serve.server import STOCK
from star_kv_sglang.tools.bench.serve.statistic import median_interval, percentile

_FIRST_BRANCH: Final = 10_000
_BETWEEN: Final = 11_000
_SHARES: Final = {"p50": 0.5, "p95": 0.95}

Answers = list[Stream]
"""Those of one conversation, turn by turn."""


def _step_s(answer: Stream) -> float | None:
    """Seconds from token to token behind the first."""
    (first_s, first), (last_s, last) = answer.chunks[0], answer.chunks[-1]
    return (last_s - first_s) / (last - first) if last > first else None


_SECONDS: Final[dict[str, Callable[[Stream], float | None]]] = {
    "ttft": lambda answer: answer.ttft_s,
    "scheduler": lambda answer: answer.scheduler_s,
    "step": _step_s,
}


async def run_ttft(context: Context) -> None:
    """Hold the same conversation several times, each a branch of its own; the first one only warms up."""
    await run_ttft_side_by_side([context])


async def run_ttft_side_by_side(contexts: Sequence[Context]) -> None:
    """The same on several servers, which take turns; with ratios to stock where it is among them."""
    for context in contexts:
        context.start_clock()
    sizes = contexts[0].sizes
    held: list[list[Answers]] = [[] for _ in contexts]
    for repeat in range(sizes.ttft_repeats + 1):
        order = [(repeat + place) % len(contexts) for place in range(len(contexts))]
        answers = {place: await _conversation(contexts[place], _FIRST_BRANCH + repeat) for place in order}
        if any(len(each) < sizes.ttft_turns for each in answers.values()):
            break
        if repeat:
            for place, each in answers.items():
                held[place].append(each)
    is_partial = len(held[0]) < sizes.ttft_repeats
    stock = next((talks for context, talks in zip(contexts, held, strict=True) if context.policy.label == STOCK), None)
    for context, talks in zip(contexts, held, strict=True):
        for turn in range(sizes.ttft_turns if talks else 0):
            _report(context, turn, talks, is_partial)
            if stock is not None and stock is not talks:
                _compare(context, turn, talks, stock, is_partial)
        if not talks:
            context.add(context.figure("ttft_ms_p50", None, partial=True, note="no time for one conversation"))


async def _conversation(context: Context, number: int) -> Answers:
    """All turns of a branch, or those that there was time for, in a cache that nothing else takes room of.

    Emptying the cache gives the engine's free memory back to the device, so that another screenshot comes first.
    """
    answers: Answers = []
    await context.client.flush()
    await context.client.ask(branch(_BETWEEN + number, context.screens, 1).prompt, max_new_tokens=2)
    talk = branch(number, context.screens, 1)
    while len(answers) < context.sizes.ttft_turns and context.seconds_left > 0:
        answer = await context.client.ask(talk.prompt, max_new_tokens=context.sizes.answer_tokens)
        answers.append(answer)
        context.say(f"branch {number - _FIRST_BRANCH}, turn {len(answers)}: {1000 * answer.ttft_s:.0f} ms")
        talk = talk.answered(answer.text).shown(context.screens[(number + len(answers)) % len(context.screens)])
    return answers


def _at(turn: int, talks: Sequence[Answers], is_partial: bool) -> dict[str, int | bool | str]:
    return {"history": talks[0][turn].prompt_tokens, "batch": turn + 1, "partial": is_partial}


def _report(context: Context, turn: int, talks: Sequence[Answers], is_partial: bool) -> None:
    at, answers = _at(turn, talks, is_partial), [talk[turn] for talk in talks]
    for what, seconds in _SECONDS.items():
        times = [1000 * each for answer in answers if (each := seconds(answer)) is not None]
        for name, share in _SHARES.items() if times else ():
            context.add(context.figure(f"{what}_ms_{name}", percentile(times, share), **at))
    hit = sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)
    context.add(context.figure("hit_rate", hit, **at))


def _compare(context: Context, turn: int, talks: Sequence[Answers], stock: Sequence[Answers], is_partial: bool) -> None:
    """Median of the repeats' ratios to stock, with its 95% interval."""
    at = _at(turn, talks, is_partial)
    for what, seconds in _SECONDS.items():
        pairs = [(seconds(mine[turn]), seconds(other[turn])) for mine, other in zip(talks, stock, strict=True)]
        ratios = [mine / other for mine, other in pairs if mine is not None and other]
        if ratios:
            for name, value in zip(("", "_low", "_high"), median_interval(ratios), strict=True):
                context.add(context.figure(f"{what}_ratio{name}", value, **at))
