"""Prompts that wait or run, as a tree: the same answers as comparing all, and nothing left of what is gone."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.records import Requests
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.engine.waiting import WaitingPrompts
from star_kv_sglang.tools.bench.waiting import Prompt, compare_all

# Few tokens and short prompts: most prompts share something, many end inside of another one, some are equal or empty.
TOKENS = st.lists(st.integers(0, 2), max_size=7)
NAMESPACE = 2
"""Names that tell tenants apart."""
KEYS = st.sampled_from([None, "a"])
COMES = st.builds(lambda tokens, *names: Prompt(array("q", tokens), *names), TOKENS, KEYS, KEYS)
CHANGES = COMES | st.tuples(st.sampled_from(["goes", "loses its prompt"]), st.integers(0, 20))


def prompt(*tokens: int, extra_key: str | None = None, cache_salt: str | None = None) -> Prompt:
    return Prompt(array("q", tokens), extra_key, cache_salt)


def check(waiting: WaitingPrompts, one: Prompt, others: Sequence[Prompt]) -> None:
    """The answer is that of the slow way; every prefix is stored once, with a run only where prompts part or end."""
    assert waiting.shared_prefix_len(one, others) == compare_all(one, others)
    known = list({id(each): each for each in (one, *others)}.values())
    ends = {(each.extra_key, each.cache_salt, *each.origin_input_ids) for each in known}
    prefixes = {path[:end] for path in ends for end in range(NAMESPACE + 1, len(path) + 1)}
    continuations = Counter(path[:-1] for path in prefixes)
    runs = {path for path in prefixes if path in ends or continuations[path] > 1}
    assert (waiting.num_prompts, waiting.num_tokens, waiting.num_runs) == (len(known), len(prefixes), len(runs))


@settings(max_examples=300)
@given(st.lists(COMES, max_size=8), st.lists(st.lists(CHANGES, min_size=1, max_size=3), max_size=8))
def test_it_answers_as_if_every_prompt_were_compared(
    first: list[Prompt], steps: list[list[Prompt | tuple[str, int]]]
) -> None:
    """Each request is asked about between two steps, as one of those that wait and as one that does not any more."""
    waiting, present = WaitingPrompts(), list(first)
    for step in [[], *steps]:
        for change in step:
            if isinstance(change, Prompt):
                present.append(change)
            elif present:
                name, number = change
                one = present[number % len(present)]
                if name == "goes":
                    present.remove(one)
                else:  # as SGLang does with a request that it refuses
                    one.origin_input_ids = array("q", [0])
        for one in present:
            check(waiting, one, present)
            check(waiting, one, [each for each in present if each is not one])
    waiting.clear()
    assert (waiting.num_prompts, waiting.num_runs, waiting.num_tokens) == (0, 0, 0)


def test_the_longest_prefix_in_common_with_any_other() -> None:
    one, two, far = prompt(1, 2, 3, 4), prompt(1, 2, 3, 9), prompt(1, 7)
    waiting = WaitingPrompts()
    assert waiting.shared_prefix_len(one, [one, two, far]) == 3
    assert waiting.shared_prefix_len(one, [one, far]) == 1
    assert waiting.shared_prefix_len(one, [one]) == 0, "a request is no peer of its own"
    assert waiting.shared_prefix_len(one, [one, prompt(1, 2, 3, 4, 5)]) == 4
    assert waiting.shared_prefix_len(one, [one, one, prompt(1, 2, extra_key="tenant")]) == 0
    assert waiting.shared_prefix_len(one, [one, prompt(1, 2, cache_salt="salt")]) == 0


def test_a_new_request_where_a_dead_one_was_is_a_new_one() -> None:
    """Python gives its number again; the same tokens under another key are another prompt too."""
    waiting, other = WaitingPrompts(), prompt(1, 2, 3)
    one = prompt(1, 2, 5)
    assert waiting.shared_prefix_len(other, [one, other]) == 2
    one.origin_input_ids = array("q", [1, 7])
    assert waiting.shared_prefix_len(other, [one, other]) == 1
    one.extra_key = "tenant"
    assert waiting.shared_prefix_len(other, [one, other]) == 0
    other.extra_key = "tenant"
    assert waiting.shared_prefix_len(other, [one, other]) == 1
    other.cache_salt = "salt"
    assert waiting.shared_prefix_len(other, [one, other]) == 0


def test_memory_stays_flat_while_prompts_come_and_go() -> None:
    """A conversation of a thousand turns: each leaves when the next one is there."""
    waiting, before = WaitingPrompts(), prompt(0)
    for number in range(1, 1000):
        after = prompt(*range(number % 10), 100 + number)
        assert waiting.shared_prefix_len(after, [before]) == compare_all(after, [before])
        assert (waiting.num_prompts, waiting.num_runs <= 3, waiting.num_tokens <= 20) == (2, True, True)
        before = after
    assert waiting.shared_prefix_len(before, []) == 0
    assert (waiting.num_prompts, waiting.num_runs, waiting.num_tokens) == (1, 1, 10)


@dataclass(eq=False)
class FakeRequest(Prompt):
    """As much of a request as is asked for to note that it is in flight."""

    rid: str = ""
    last_node: None = None
    multimodal_inputs: None = None
    sampling_params: Any = field(default_factory=lambda: SimpleNamespace(custom_params=None))

    def finished(self) -> bool:
        return True


def test_prompts_that_wait_and_those_in_flight_are_compared() -> None:
    queued, running = (FakeRequest(array("q", [1, 2, number]), rid=str(number)) for number in (3, 4))
    queue, counters = [queued], PolicyCounters()
    requests = Requests(1, FaultLog(counters))
    tree = SimpleNamespace(sharing=SimpleNamespace(continue_branch=lambda node, length: None))
    context = SimpleNamespace(tree=tree, counters=counters, config=SimpleNamespace(pinned_share=0.25))
    sharing = PromptSharing(cast(Any, context), requests, cast(Any, SimpleNamespace(waiting_queue=queue)))
    one = FakeRequest(array("q", [1, 2, 3, 5]), rid="one")
    for req in (running, one):
        sharing.scheduled(cast(Any, req))
    assert sharing.peer_prefix_len(cast(Any, one)) == 3
    queue.clear()
    assert sharing.peer_prefix_len(cast(Any, one)) == 2
    for req, left in ((running, 1), (one, 0)):
        requests.release(cast(Any, req))
        sharing.released()
        if left:
            assert sharing.peer_prefix_len(cast(Any, one)) == 0
    assert sharing._prompts.num_prompts == 0, "an idle server remembers no prompt"
