"""Prompts that leave whole screenshots out, beside the branches of a tree that have them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.alignment import Alignment, Fit
from star_kv_sglang.cache.lookup import ids_of_path
from star_kv_sglang.cache.message_index import MessageIndex
from star_kv_sglang.cache.segments import Frame
from tests.cache.world import FakeRequest, TreeWorld

START, STANDS = 1, 7
ROWS, COLS = 2, 4
NAMESPACE = ("salt", None)

Part = int | str
"""A screenshot by its hash, or words; a text in the place of a screenshot is ``~N``."""


@dataclass
class Made:
    """A prompt.

    Attributes:
        ids: Its ids.
        frames: Its screenshots.
    """

    ids: array[int]
    frames: tuple[Frame, ...]


def prompt(parts: Sequence[Part], *, opens: bool = True) -> Made:
    """The ids of some messages, and of the token that opens an answer."""
    ids, frames = array("q"), []
    for part in parts:
        ids.append(START)
        if isinstance(part, int):
            frames.append(Frame(len(ids) + 1, ROWS, COLS, part))
            ids.extend([2, *[1000 + part] * (ROWS * COLS), 3, 9])
        elif part.startswith("~"):
            ids.extend([STANDS, 9])
        else:
            ids.extend(20 + ord(letter) for letter in part)
    return Made(ids + array("q", [START] if opens else []), tuple(frames))


def stands(ids: array[int], message: object) -> bytes:
    """What a client sends for a message with a screenshot."""
    return array("q", [START, STANDS, 9]).tobytes()


class World:
    """A tree whose messages are known.

    Args:
        page_size: Of the tree.
    """

    def __init__(self, page_size: int = 1) -> None:
        self.world = TreeWorld(4000, page_size, 1)
        self.world.prunes_next = lambda: False  # type: ignore[method-assign]
        self.index = MessageIndex(START, stands)
        self.world.tree.messages = self.index

    def store(self, parts: Sequence[Part], answer: str = "") -> FakeRequest:
        """A request with this prompt and answer runs and ends."""
        made = prompt(parts)
        req = self.world.admit(made.ids, made.frames, NAMESPACE[0])
        assert req is not None
        assert self.world.prefill(req, len(made.ids))
        self.world.store(req)
        for letter in answer:
            assert self.world.decode(req, 20 + ord(letter))
        tree = self.world.tree
        path = tree.path(req.last_node)
        tree.label_frames(path, made.frames)
        self.world.finish(req, is_insert=True)
        path = tree.path(req.last_node)
        tree.label_frames(path, made.frames)
        self.index.note(tree, path, req.full_untruncated_fill_ids, made.frames, NAMESPACE)
        return req

    def find(self, parts: Sequence[Part]) -> Fit | None:
        """The branch of a prompt."""
        made = prompt(parts)
        return Alignment(self.world.tree, self.index, made.ids, made.frames).best(NAMESPACE)

    def is_lost(self, parts: Sequence[Part]) -> bool:
        """Whether a prompt sends what was pruned."""
        made = prompt(parts)
        return Alignment(self.world.tree, self.index, made.ids, made.frames).is_lost(NAMESPACE)


def left_out(fit: Fit | None) -> list[int] | None:
    """Hashes of what a prompt leaves out."""
    return None if fit is None else [frame.image_hash for frame in fit.left_out]


BRANCH: list[Part] = ["task", 1, "aa", 2, "bb", 3, "cc", 4]


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["task", "aa", 2, "bb", 3, "cc", 4, "dd", 5], [1]),
        (["task", "aa", "bb", 3, "cc", 4, "dd", 5], [1, 2]),
        (["task", "aa", "bb", "cc", "dd", 5], [1, 2, 3, 4]),
        (["task", 1, "aa", "bb", "cc", 4, "dd", 5], [2, 3]),
        (["task", 1, "aa", 2, "bb", 3, "cc", "dd", 5], [4]),
        (["task", "~", "aa", "~", "bb", 3, "cc", 4, "dd", 5], [1, 2]),
        (["task", "~", "aa", "~", "bb", "~", "cc", "~", "dd", 5], [1, 2, 3, 4]),
        ([*BRANCH, "dd", 5], None),
        (["tusk", "aa", 2, "bb", 3, "cc", 4, "dd", 5], None),
        # From where it goes on as no branch does, it is computed as it came.
        (["task", "aa", 3, "bb", 2, "cc", 4, "dd", 5], [1]),
        (["task", "xx", "bb", 3, "cc", 4, "dd", 5], None),
        (["task", 9, "aa", 2, "bb", 3, "cc", 4, "dd", 5], None),
        (["task"], None),
    ],
)
def test_what_a_prompt_leaves_out(page_size: int, parts: list[Part], expected: list[int] | None) -> None:
    world = World(page_size)
    world.store(BRANCH, "dd" + "d" * page_size)
    made = [part if part != "dd" else "dd" + "d" * page_size for part in parts]
    assert left_out(world.find(made)) == expected


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("answer", ["d", "dd", "d" * 9, "d" * 40])
@pytest.mark.parametrize("gone", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [4]])
def test_what_is_left_out_lies_in_the_pages_that_are_matched(page_size: int, answer: str, gone: list[int]) -> None:
    world = World(page_size)
    world.store(BRANCH, answer)
    parts = [part for part in BRANCH if part not in gone]
    sent, fit = prompt([*parts, answer, 5]), world.find([*parts, answer, 5])
    if fit is not None:
        tree = world.world.tree
        ids = ids_of_path(tree, fit.last, fit.held) + sent.ids[fit.sent :]
        matched = tree.match_prefix(MatchPrefixParams(key=RadixKey(ids, NAMESPACE[0]))).last_device_node
        assert tree.end_of(matched) >= fit.held
    # Nobody has computed K and V of an answer's last token, and a branch that ends there is told by nothing else.
    assert fit is not None or page_size > 1 or (gone == [4] and answer == "d")


def test_what_was_lost_behind_a_split_is_not_lost_before_it() -> None:
    """Another branch has another screenshot at the same place, as it has where all are of one size."""
    world = World()
    world.store(BRANCH, "dd")
    tree = world.world.tree
    first = prompt(BRANCH).frames[1].start
    (node,) = tree.root_node.children.values()
    while tree.end_of(node) <= first:
        (node,) = node.children.values()
    tree.extra(node).lost.add(first)
    world.index.any_lost = True
    world.store(["task", 1, "aa", 7, "bb", 8], "ee")
    assert left_out(world.find(["task", 1, "aa", 7, "bb", "ee", 5])) == [8]


def test_what_is_put_back_is_what_the_branch_has() -> None:
    world = World()
    world.store(BRANCH[:4], "bb")
    world.store(BRANCH, "dd")
    sent = prompt(["task", "aa", 2, "bb", "cc", 4, "dd", 5])
    fit = world.find(["task", "aa", 2, "bb", "cc", 4, "dd", 5])
    assert fit is not None
    whole = prompt([*BRANCH, "dd", 5])
    held = ids_of_path(world.world.tree, fit.last, fit.held)
    assert held + sent.ids[fit.sent :] == whole.ids
    assert fit.frames == whole.frames[:3]
    ((message, shift),) = fit.shifts
    assert (message.frames, shift) == (sent.frames[:1], whole.frames[1].start - sent.frames[0].start)
    # Two screenshots of 2 x 4 tokens in messages of 12: four text tokens and four steps each.
    assert fit.num_steps == 2 * 8


def test_a_branch_that_was_split_and_one_that_is_gone() -> None:
    world = World()
    world.store(BRANCH, "dd")
    world.store([*BRANCH[:5], 7, "ee"], "ff")
    assert left_out(world.find(["task", "aa", 2, "bb", 7, "ee", 8])) == [1]
    assert left_out(world.find(["task", "aa", 2, "bb", 3, "cc", 4, "dd", 5])) == [1]
    world.world.evict(4000)
    assert world.index.num_marks == 0
    assert world.find(["task", "aa", 2, "bb", 3, "cc", 4, "dd", 5]) is None
    world.store(BRANCH, "dd")
    assert left_out(world.find(["task", "aa", 2, "bb", 3, "cc", 4, "dd", 5])) == [1]


def test_of_branches_that_fit_the_one_that_goes_on_as_the_prompt_does_is_taken_then_the_newest() -> None:
    world = World()
    for number in (1, 2, 3):
        world.store(["task", number, "aa", 9], "bb" if number != 2 else "cc")
    fit = world.find(["task", "aa", 9, "cc", 5])
    assert (left_out(fit), fit and fit.num_branches) == ([2], 1)
    fit = world.find(["task", "aa", 9, "bb", 5])
    assert (left_out(fit), fit and fit.num_branches) == ([3], 2)
    world.store(["task", 1, "aa", 9], "bb")
    assert left_out(world.find(["task", "aa", 9, "bb", 5])) == [1]


def test_of_two_equal_messages_one_is_left_out() -> None:
    world = World()
    world.store(["task", 1, "aa", 1, "aa", 1], "bb")
    assert left_out(world.find(["task", "aa", 1, "aa", 1, "bb", 2])) == [1]
    assert left_out(world.find(["task", "aa", "aa", 1, "bb", 2])) == [1, 1]


def test_an_answer_that_was_rewritten_tells_nothing_of_the_screenshot_before_it() -> None:
    world = World()
    world.store(["task", 1, "aa", 2], "bb")
    # Nothing says that this prompt has seen the second screenshot.
    assert left_out(world.find(["task", "aa", "other", 3])) == [1]
    assert left_out(world.find(["task", 1, "aa", "bb", 3])) == [2]


def test_what_was_lost_serves_nobody_who_sends_it() -> None:
    world = World()
    req = world.store(BRANCH, "dd")
    whole = prompt(BRANCH)
    node = next(node for node in world.world.tree.path(req.last_node) if world.world.tree.extra(node).segments)
    world.world.tree.extra(node).lost.add(whole.frames[0].start)
    world.index.any_lost = True
    assert world.is_lost([*BRANCH, "dd", 5])
    assert left_out(world.find(["task", 1, "aa", "bb", 3, "cc", 4, "dd", 5])) is None
    assert left_out(world.find(["task", "aa", "bb", 3, "cc", 4, "dd", 5])) == [1, 2]
    assert not world.is_lost(["task", "aa", "bb", 3, "cc", 4, "dd", 5])
    # It goes with its node.
    world.world.evict(4000)
    assert not world.is_lost([*BRANCH, "dd", 5])


def test_any_set_of_screenshots_may_be_left_out() -> None:
    rng = random.Random(3)
    world = World()
    branches = []
    for number in range(8):
        parts: list[Part] = ["task"]
        for turn in range(6):
            parts += [100 * number + turn if turn else rng.randrange(2), f"a{rng.randrange(3)}"]
        branches.append(parts)
        world.store([*parts, 100 * number + 50], "zz")
    for _ in range(60):
        number = rng.randrange(8)
        drops = {index for index in range(1, 13, 2) if rng.random() < 0.5}
        kept = [part for index, part in enumerate(branches[number]) if index not in drops]
        fit = world.find([*kept, 100 * number + 50, "zz", 5])
        made = prompt([*kept, 100 * number + 50, "zz", 5])
        if fit is None:
            assert not drops
            continue
        held = ids_of_path(world.world.tree, fit.last, fit.held)
        whole = prompt([*branches[number], 100 * number + 50, "zz", 5])
        assert held + made.ids[fit.sent :] == whole.ids
