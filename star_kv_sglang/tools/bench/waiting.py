"""What it costs to find the longest prefix that a prompt shares with others that wait: one by one, and by the tree."""

from __future__ import annotations

import gc
import random
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.engine.waiting import Prompted, WaitingPrompts
from star_kv_sglang.tools.bench.query_times import QueryTime

VOCABULARY = 150_000


@dataclass(eq=False)
class Prompt:
    """A request, as far as its prompt goes."""

    origin_input_ids: array[int]
    extra_key: str | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class QueueShape:
    """What waits.

    Attributes:
        num_waiting: Requests.
        num_shared: Tokens that all of them begin with.
        num_own: Tokens behind them, which differ from the first on.
    """

    num_waiting: int = 500
    num_shared: int = 26_000
    num_own: int = 500


def compare_all(req: Prompted, others: Iterable[Prompted]) -> int:
    """The slow way, which the tests take for the truth: compare a prompt with all others of its namespace."""
    key = RadixKey(req.origin_input_ids)
    return max(
        (
            key.match(RadixKey(other.origin_input_ids))
            for other in others
            if other is not req and (other.extra_key, other.cache_salt) == (req.extra_key, req.cache_salt)
        ),
        default=0,
    )


def measure(shape: QueueShape, *, num_queries: int = 200) -> Iterator[QueryTime]:
    """Ask both ways, and the tree with nothing new, after a change of the queue, and when it knows nobody yet.

    Args:
        shape: What waits.
        num_queries: Of each kind; a tenth of it where all prompts are walked.

    Raises:
        RuntimeError: An answer is wrong.
    """
    rng = random.Random(1)
    shared = array("q", (rng.randrange(VOCABULARY) for _ in range(shape.num_shared)))
    waiting = [_prompt(shared, number, shape, rng) for number in range(shape.num_waiting)]
    few = max(2, num_queries // 10)

    def ask(prompts: WaitingPrompts) -> float:
        return _timed(lambda: prompts.shared_prefix_len(waiting[0], waiting), shape)

    def changed(number: int) -> float:
        """The first of the queue has run, and another one came."""
        waiting.pop(0)
        waiting.append(_prompt(shared, shape.num_waiting + number, shape, rng))
        return ask(known)

    gc.collect()
    gc.freeze()  # what the imports left behind is no part of a query
    yield _row("compare with all", few, lambda _: _timed(lambda: compare_all(waiting[0], waiting), shape))
    yield _row("tree, all are new", few, lambda _: ask(WaitingPrompts()))
    known = WaitingPrompts()
    ask(known)
    yield _row("tree, nobody is new", num_queries, lambda _: ask(known))
    yield _row("tree, one left and one came", num_queries, changed)
    gc.unfreeze()


def _prompt(shared: array[int], number: int, shape: QueueShape, rng: random.Random) -> Prompt:
    """The shared tokens, then the request's number and whatever."""
    own = (rng.randrange(VOCABULARY) for _ in range(shape.num_own - 1))
    return Prompt(shared + array("q", [VOCABULARY + number, *own]))


def _row(query: str, num_queries: int, run: Callable[[int], float]) -> QueryTime:
    return QueryTime.of(query, [run(number) for number in range(num_queries)])


def _timed(ask: Callable[[], int], shape: QueueShape) -> float:
    """Seconds of this thread alone, so that whatever else the machine does is left out."""
    start = time.thread_time()
    found = ask()
    seconds = time.thread_time() - start
    if found != shape.num_shared:
        raise RuntimeError(f"{found} tokens in common were found, not {shape.num_shared}: its time means nothing")
    return seconds
