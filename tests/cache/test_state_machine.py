"""Random histories on the real tree and allocator: after every step every invariant holds and the oracle agrees."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.lookup import held_length
from tests.cache.invariants import check
from tests.cache.sequences import frame_length, frames_in
from tests.cache.shadow import ShadowedWorld
from tests.cache.world import MAX_LEN, FakeRequest

logger = logging.getLogger(__name__)

FRAME_TOKENS = (-9 - 97, -30 - 97, -96 - 97, -12 - 97, -30 - 194, -72 - 97)


CHUNKS = st.sampled_from([400, 17, 5])
SELDOM = st.sampled_from([False, False, False, True])


@dataclass(frozen=True)
class NewPrompt:
    """A turn that continues, forks, repeats or starts a branch; with an empty tail it ends in a screenshot.

    Attributes:
        parent: Which of the histories it continues, the newest first; none from 6 on.
        share: How much of that history.
        salt: Of a new branch.
        frame: Its screenshot.
        words: Before the screenshot.
        tail: Behind it.
    """

    parent: int
    share: float
    salt: str | None
    frame: int
    words: list[int]
    tail: list[int]


PROMPTS = st.builds(
    NewPrompt,
    parent=st.integers(0, 7),
    share=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.2]),
    salt=st.sampled_from([None, None, None, "other"]),
    frame=st.sampled_from(FRAME_TOKENS),
    words=st.sampled_from([[0], [1], [0, 1], [0] * 17, [1] * 17]),
    tail=st.sampled_from([[], [0], [1], [0, 1]]),
)


def cut(tokens: array[int], share: float) -> array[int]:
    """The first part of a sequence; a screenshot stays whole or goes."""
    end = round(share * len(tokens))
    return tokens[: min([end, *(frame.start for frame in frames_in(tokens) if frame.start < end < frame.end)])]


COMMON = ("splits", "seals", "reprunes", "evictions", "skips", "forks")
"""What happens often; matches that must step back out of a sealed segment are rarer, and have cases of their own."""


class TreeMachine(RuleBasedStateMachine):
    """Branches that fork, run, are aborted, pruned, evicted and flushed."""

    page_size = 1
    common: ClassVar[tuple[str, ...]] = (*COMMON, "left_out")
    num_steps: ClassVar[int] = 0
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(seed=st.integers(0, 2**31), slots=st.sampled_from([320, 640, 1600]))
    def start(self, seed: int, slots: int) -> None:
        self.world = self.make_world(slots, seed)
        self.histories: list[tuple[str | None, array[int]]] = []
        self.prompts: list[tuple[str | None, array[int]]] = []

    def make_world(self, slots: int, seed: int) -> ShadowedWorld:
        """The world of one history."""
        return ShadowedWorld(slots, self.page_size, seed)

    @rule(prompt=PROMPTS)
    def new_request(self, prompt: NewPrompt) -> None:
        """A prompt comes and waits."""
        self._admit(prompt)

    @rule(prompt=PROMPTS, chunk=CHUNKS, num_decoded=st.integers(0, 3), same_again=SELDOM)
    def new_turn(self, prompt: NewPrompt, chunk: int, num_decoded: int, same_again: bool) -> None:
        """A prompt comes and runs to its end, whatever else waits."""
        req = self._admit(prompt)
        if req is not None:
            self._run(req, chunk, num_decoded, same_again=same_again)

    def _admit(self, prompt: NewPrompt) -> FakeRequest | None:
        salt, history = prompt.salt, array("q")
        if self.histories and prompt.parent < 6:
            salt, history = self.histories[-1 - prompt.parent % len(self.histories)]
        frame = array("q", [prompt.frame] * frame_length(prompt.frame))
        tokens = cut(history, prompt.share) + array("q", prompt.words) + frame + array("q", prompt.tail)
        return self.world.admit(tokens, frames_in(tokens), salt) if len(tokens) < MAX_LEN - 16 else None

    @rule(which=st.integers(0, 7), chunk=CHUNKS, num_decoded=st.integers(0, 3))
    def repeat_a_prompt(self, which: int, chunk: int, num_decoded: int) -> None:
        """A prompt that has been asked before, word for word; it may end in the middle of what is now sealed."""
        if self.prompts:
            salt, prompt = self.prompts[-1 - which % len(self.prompts)]
            req = self.world.admit(prompt, frames_in(prompt), salt)
            if req is not None:
                self._run(req, chunk, num_decoded)

    @precondition(lambda self: any(not r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 7), chunk=CHUNKS, num_decoded=st.integers(0, 3))
    def whole_turn(self, which: int, chunk: int, num_decoded: int) -> None:
        """A request that waits runs to its end."""
        waiting = [r for r in self.world.running if not r.prefilled]
        self._run(waiting[which % len(waiting)], chunk, num_decoded)

    def _run(self, req: FakeRequest, chunk: int, num_decoded: int, *, same_again: bool = False) -> None:
        """From the first chunk to the end, everything checked in between."""
        while req in self.world.running and not req.prefilled:
            self._one_chunk(req, chunk, same_again=same_again)
            self.everything_holds()
        for _ in range(num_decoded):
            if req in self.world.running:
                self._one_token(req, 1)
        if req in self.world.running:
            self._finish(req)

    @precondition(lambda self: any(not r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 40), chunk=CHUNKS, same_again=SELDOM)
    def prefill(self, which: int, chunk: int, same_again: bool) -> None:
        """One chunk of a prompt, or the rest of it; the same prompt may come again before the result is known."""
        waiting = [r for r in self.world.running if not r.prefilled]
        self._one_chunk(waiting[which % len(waiting)], chunk, same_again=same_again)

    def _one_chunk(self, req: FakeRequest, chunk: int, *, same_again: bool = False) -> None:
        total = len(req.origin_input_ids)
        end = min(total, req.prefix_len + chunk)
        if not self.world.prefill(req, end):
            self.world.finish(req, is_insert=False)
            return
        if end == total:
            self.prompts.append((req.extra_key, req.origin_input_ids))
        if same_again and end == total:
            self.world.admit(req.origin_input_ids, req.frames, req.extra_key)
        self.world.store(req)

    @precondition(lambda self: any(not r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 40))
    def prefill_and_finish(self, which: int) -> None:
        """A prompt with one output token: it ends with its prefill."""
        waiting = [r for r in self.world.running if not r.prefilled]
        req = waiting[which % len(waiting)]
        if self.world.prefill(req, len(req.origin_input_ids)):
            req.output_ids.append(1)
            self._finish(req)
        else:
            self.world.finish(req, is_insert=False)

    @precondition(lambda self: any(r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 40), token=st.integers(0, 1))
    def decode(self, which: int, token: int) -> None:
        """One decode step."""
        decoding = [r for r in self.world.running if r.prefilled]
        self._one_token(decoding[which % len(decoding)], token)

    def _one_token(self, req: FakeRequest, token: int) -> None:
        if not self.world.decode(req, token):
            self.world.finish(req, is_insert=False)

    @precondition(lambda self: any(r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 40))
    def finish(self, which: int) -> None:
        """A request ends and its branch may come back."""
        decoding = [r for r in self.world.running if r.prefilled]
        self._finish(decoding[which % len(decoding)])

    def _finish(self, req: FakeRequest) -> None:
        self.world.finish(req, is_insert=True)
        self.histories.append((req.extra_key, req.full_untruncated_fill_ids))

    @precondition(lambda self: self.world.running)
    @rule(which=st.integers(0, 40))
    def abort(self, which: int) -> None:
        """A request ends and leaves nothing of its own."""
        self.world.finish(self.world.running[which % len(self.world.running)], is_insert=False)

    @precondition(lambda self: self.histories)
    @rule(prompt=PROMPTS, num_segments=st.integers(1, 3), chunk=CHUNKS, num_decoded=st.integers(0, 3))
    def recognised_turn(self, prompt: NewPrompt, num_segments: int, chunk: int, num_decoded: int) -> None:
        """A prompt that goes on from a history leaves screenshots of it out, is recognised, and runs to its end."""
        req = self._admit(replace(prompt, parent=prompt.parent % 6, share=1.0))
        if req is not None:
            self.world.leave_out(req, num_segments)
            self.everything_holds()
            self._run(req, chunk, num_decoded)

    @precondition(lambda self: self.world.running)
    @rule(which=st.integers(0, 40), at_most=st.sampled_from([0, 64, 1000]))
    def pin(self, which: int, at_most: int) -> None:
        """A request asks to share its path."""
        self.world.pin(self.world.running[which % len(self.world.running)], at_most=at_most)

    @rule(num_tokens=st.integers(1, 120))
    def evict(self, num_tokens: int) -> None:
        """The pool runs short."""
        self.world.evict(num_tokens)

    @rule(num_segments=st.integers(1, 3))
    def prune_unheld(self, num_segments: int) -> None:
        """Segments that nobody holds are pruned, some of them again."""
        self.world.prune_unheld(num_segments)

    @precondition(lambda self: not self.world.running)
    @rule()
    def flush(self) -> None:
        """Forget everything."""
        self.world.flush()
        self.histories.clear()
        self.prompts.clear()

    @invariant()
    def everything_holds(self) -> None:
        """All invariants, and the same in the oracle."""
        if hasattr(self, "world"):
            type(self).num_steps += 1
            check(self.world)
            self.world.agree()

    def teardown(self) -> None:
        """Add up what has happened."""
        if hasattr(self, "world"):
            self.seen.update(self.world.oracle.counts)


class PagedTreeMachine(TreeMachine):
    """The same with pages of 16 slots."""

    page_size = 16


MACHINES = pytest.mark.parametrize("machine", [TreeMachine, PagedTreeMachine], ids=["page1", "page16"])


def run_histories(machine: type[TreeMachine], *, least_steps: int, **options: Any) -> None:
    """Run random histories; nothing common may have stayed out.

    Args:
        machine: What takes the steps.
        least_steps: Steps after which everything was compared.
        options: Settings of hypothesis.
    """
    machine.num_steps, machine.seen = 0, Counter()
    run_state_machine_as_test(
        machine, settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **options)
    )
    logger.info("%s: %d states compared with the oracle, %s", machine.__name__, machine.num_steps, dict(machine.seen))
    assert machine.num_steps >= least_steps
    assert all(machine.seen[event] for event in machine.common), machine.seen


@pytest.mark.parametrize("page_size", [1, 16], ids=["page1", "page16"])
def test_the_branch_that_was_there_first_is_evicted_first(page_size: int) -> None:
    """Two branches that wait together and diverge: storing the second splits and touches the first, and is later."""
    world = ShadowedWorld(640, page_size, seed=0)
    frame = array("q", [FRAME_TOKENS[-1]] * frame_length(FRAME_TOKENS[-1]))
    prompts = [array("q", [1] * 16 + words) + frame + array("q", [0] * 16) for words in ([1] * 16, [0] * 16)]
    reqs = [world.admit(prompt, frames_in(prompt), None) for prompt in prompts]
    for req in reqs:
        assert req is not None and world.prefill(req, len(req.origin_input_ids))
        req.output_ids.append(1)
        world.finish(req, is_insert=True)
    world.evict(1)
    check(world)
    world.agree()
    held = [held_length(world.tree, RadixKey(prompt)) for prompt in prompts]
    assert held == [16, len(prompts[1]) // page_size * page_size]


@MACHINES
def test_random_histories(machine: type[TreeMachine]) -> None:
    """The same histories every time."""
    run_histories(machine, least_steps=2_000, max_examples=40, stateful_step_count=50, derandomize=True)


@pytest.mark.nightly
@MACHINES
def test_random_histories_at_length(machine: type[TreeMachine]) -> None:
    """Other histories every time."""
    run_histories(machine, least_steps=20_000, max_examples=400, stateful_step_count=100)
