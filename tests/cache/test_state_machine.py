"""Random histories on the real tree and allocator; every invariant after every step."""

from __future__ import annotations

from array import array

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

from star_kv_sglang.cache.segments import Frame
from tests.cache.invariants import check, frame_length
from tests.cache.world import MAX_LEN, FakeRequest, TreeWorld

FRAME_TOKENS = (-9 - 97, -12 - 97, -30 - 97, -30 - 194, -72 - 97)


def frames_in(tokens: array[int]) -> tuple[Frame, ...]:
    """The screenshots of a sequence."""
    frames, position = [], 0
    while position < len(tokens):
        if tokens[position] < 0:
            length = frame_length(tokens[position])
            frames.append(Frame(position, 3, length // 3, tokens[position]))
            position += length
        else:
            position += 1
    return tuple(frames)


class TreeMachine(RuleBasedStateMachine):
    """Branches that fork, run, are aborted, pruned, evicted and flushed."""

    page_size = 1

    @initialize(seed=st.integers(0, 2**31), slots=st.sampled_from([320, 640, 1600]))
    def start(self, seed: int, slots: int) -> None:
        self.world = self.make_world(slots, seed)
        self.histories: list[tuple[str | None, array[int]]] = []
        self.prompts: list[tuple[str | None, array[int]]] = []

    def make_world(self, slots: int, seed: int) -> TreeWorld:
        """The world of one history."""
        return TreeWorld(slots, self.page_size, seed)

    @rule(
        parent=st.integers(0, 7),
        frame=st.sampled_from(FRAME_TOKENS),
        words=st.lists(st.integers(0, 1), min_size=1, max_size=2),
        tail=st.lists(st.integers(0, 1), max_size=2),
        salt=st.sampled_from([None, None, None, "other"]),
    )
    def new_request(self, parent: int, frame: int, words: list[int], tail: list[int], salt: str | None) -> None:
        """A turn that continues, forks, repeats or starts a branch; with an empty tail the prompt ends in a
        screenshot.
        """
        history = array("q")
        if self.histories and parent < 6:
            salt, history = self.histories[-1 - parent % len(self.histories)]
        prompt = history + array("q", words) + array("q", [frame] * frame_length(frame)) + array("q", tail)
        if len(prompt) < MAX_LEN - 16:
            self.world.admit(prompt, frames_in(prompt), salt)

    @rule(which=st.integers(0, 7))
    def repeat_a_prompt(self, which: int) -> None:
        """A prompt that has been asked before, word for word; it may end in the middle of what is now sealed."""
        if self.prompts:
            salt, prompt = self.prompts[-1 - which % len(self.prompts)]
            self.world.admit(prompt, frames_in(prompt), salt)

    @rule(which=st.integers(0, 7), chunk=st.sampled_from([5, 17, 400]), num_decoded=st.integers(0, 3))
    def whole_turn(self, which: int, chunk: int, num_decoded: int) -> None:
        """A request runs from its first chunk to its end, every invariant checked in between."""
        waiting = [r for r in self.world.running if not r.prefilled]
        if not waiting:
            return
        req = waiting[which % len(waiting)]
        while req in self.world.running and not req.prefilled:
            self._one_chunk(req, chunk)
            check(self.world)
        for _ in range(num_decoded):
            if req in self.world.running:
                self._one_token(req, 1)
        if req in self.world.running:
            self._finish(req)

    @precondition(lambda self: any(not r.prefilled for r in self.world.running))
    @rule(which=st.integers(0, 40), chunk=st.sampled_from([5, 17, 400]))
    def prefill(self, which: int, chunk: int) -> None:
        """One chunk of a prompt, or the rest of it."""
        waiting = [r for r in self.world.running if not r.prefilled]
        self._one_chunk(waiting[which % len(waiting)], chunk)

    def _one_chunk(self, req: FakeRequest, chunk: int) -> None:
        total = len(req.origin_input_ids)
        end = min(total, len(req.prefix_indices) + chunk)
        if not self.world.prefill(req, end):
            self.world.finish(req, is_insert=False)
            return
        if end == total:
            self.prompts.append((req.extra_key, req.origin_input_ids))
        self.world.tree.cache_unfinished_req(req, chunked=end < total)  # type: ignore[arg-type]

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

    @precondition(lambda self: self.world.running)
    @rule(which=st.integers(0, 40))
    def pin(self, which: int) -> None:
        """A request asks to share its path."""
        self.world.tree.pin(self.world.running[which % len(self.world.running)].last_node)

    @rule(num_tokens=st.integers(1, 120))
    def evict(self, num_tokens: int) -> None:
        """The pool runs short."""
        self.world.evict(num_tokens)

    @precondition(lambda self: not self.world.running)
    @rule()
    def flush(self) -> None:
        """Forget everything."""
        self.world.flush()
        self.histories.clear()
        self.prompts.clear()

    @invariant()
    def everything_holds(self) -> None:
        """All invariants."""
        if hasattr(self, "world"):
            check(self.world)


class PagedTreeMachine(TreeMachine):
    """The same with pages of 16 slots."""

    page_size = 16


@pytest.mark.parametrize("machine", [TreeMachine, PagedTreeMachine], ids=["page1", "page16"])
def test_random_histories(machine: type[RuleBasedStateMachine]) -> None:
    """About 3,000 steps for each page size."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.nightly
@pytest.mark.parametrize("machine", [TreeMachine, PagedTreeMachine], ids=["page1", "page16"])
def test_random_histories_at_length(machine: type[RuleBasedStateMachine]) -> None:
    """At least 20,000 steps for each page size."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
