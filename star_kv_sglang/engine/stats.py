"""Counters of the policy and a census of the tree, for the server's info page and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.mem_cache.radix_cache import TreeNode

    from star_kv_sglang.cache.radix_cache import StarRadixCache
    from star_kv_sglang.cache.segments import Frame
    from star_kv_sglang.metrics.clock import StageTotal

AGES = ("0", "1", "2", "3", "4+")
"""Screenshots that came after a screenshot."""


@dataclass
class PolicyCounters:
    """What has happened since the start.

    Attributes:
        num_prompts: Prompts that were computed and entered the tree; each of a request's samples counts. SGLang's own
            health checks do not.
        num_prompt_tokens: Their positions.
        num_cached_prompt_tokens: Those among them that the tree already had.
        num_prunes: Prompts after which something was pruned.
        num_pruned_tokens: Slots that were freed by pruning.
        num_scored_prompts: Prompts that were scored.
        num_prompts_left_whole: Prompts that were not scored, and not pruned this turn, because together with the others
            of their batch they have more live tokens than there is memory for.
        num_encoded_images: Screenshots that passed the vision tower.
        num_pageable_uploads: Those among them whose upload waited for the step before, for want of pinned memory.
        num_skipped_segments: Segments that had changed, or had become shared, between choice and prune.
        num_budget_steps: Times that the private nodes had to be brought below the tree-wide budget.
        num_budget_evicted_tokens: Slots of leaves that were dropped because pruning did not suffice for it.
        num_budget_misses: Times that even this did not suffice.
        num_shrinks: Times that segments nobody held were pruned because the pool ran short.
        num_shrunk_tokens: Slots that were freed by it.
        num_avoided_evictions: Times that it freed enough, so that no leaf was dropped.
        num_pruner_faults: Times that scoring or pruning failed with an error and did not take place.
        num_recency_fallbacks: Prompts whose scores were no numbers, so that their newest tokens were kept.
        num_pins: Prompts whose prefix is kept whole, because they asked for it or for no token.
        num_refused_pins: Prompts whose prefix is not, because all that is kept so would be too much of the pool.
        num_recognised_windows: Prompts that had left screenshots out and were served from the branch that has them.
        num_left_out_images: Screenshots that these prompts had left out.
        num_undone_windows: Times that such a branch had gone, so that the prompt was computed as it came.
        peak_private_tokens: Most slots that private nodes held when a forward began.
    """

    num_prompts: int = 0
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_prunes: int = 0
    num_pruned_tokens: int = 0
    num_scored_prompts: int = 0
    num_prompts_left_whole: int = 0
    num_encoded_images: int = 0
    num_pageable_uploads: int = 0
    num_skipped_segments: int = 0
    num_budget_steps: int = 0
    num_budget_evicted_tokens: int = 0
    num_budget_misses: int = 0
    num_shrinks: int = 0
    num_shrunk_tokens: int = 0
    num_avoided_evictions: int = 0
    num_pruner_faults: int = 0
    num_recency_fallbacks: int = 0
    num_pins: int = 0
    num_refused_pins: int = 0
    num_recognised_windows: int = 0
    num_left_out_images: int = 0
    num_undone_windows: int = 0
    peak_private_tokens: int = 0


@dataclass
class KeptByAge:
    """Share of a screenshot that is live when a scored prompt has been pruned, by the screenshot's age.

    Attributes:
        counts: Screenshots of each age that were seen.
        sums: Sum of their shares.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(AGES, 0))
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(AGES, 0.0))
    _new: list[tuple[str, float]] = field(default_factory=list)
    keeps_new: bool = False
    """Somebody takes the single shares, not only their sums."""

    def note(self, tree: StarRadixCache, path: Sequence[TreeNode], frames: Sequence[Frame]) -> None:
        """A prompt that shows ``frames`` lies on ``path``."""
        held: dict[int, list[int]] = {}
        for node in path:
            for segment in tree.extra(node).segments:
                sizes = held.setdefault(segment.frame.start, [0, 0])
                sizes[0] += segment.end - segment.start - segment.num_holes
                sizes[1] += segment.end - segment.start
        for number, frame in enumerate(reversed(frames)):
            live, total = held.get(frame.start, (0, 0))
            if total:
                age = AGES[min(number, len(AGES) - 1)]
                self.counts[age] += 1
                self.sums[age] += live / total
                if self.keeps_new:
                    self._new.append((age, live / total))

    def take_new(self) -> list[tuple[str, float]]:
        """Age and share of every screenshot since the last call."""
        new, self._new = self._new, []
        return new

    def means(self) -> dict[str, float]:
        """Mean share of each age that was seen."""
        return {age: self.sums[age] / count for age, count in self.counts.items() if count}


@dataclass(frozen=True)
class RequestUse:
    """Tokens of a prompt when it has been pruned, as each response tells them.

    Attributes:
        live: Slots that the prompt's row shows.
        pruned: Its positions without KV.
        shared: Slots among the live ones that other branches can use.
        cuts: Times that its history was pruned without a query, for the token budget or because the pool ran short.
    """

    live: int
    pruned: int
    shared: int
    cuts: int

    @classmethod
    def of(cls, tree: StarRadixCache, path: Sequence[TreeNode], prompt_len: int) -> RequestUse:
        """Count along the path of a prompt; what the tree did not take is live."""
        pruned = sum(tree.extra(node).num_holes for node in path)
        shared = sum(tree.num_live(node) for node in path if tree.extra(node).shared)
        return cls(prompt_len - pruned, pruned, shared, sum(tree.extra(node).num_cuts for node in path))


@dataclass(frozen=True)
class TreeCensus:
    """Slots of the tree, by who can use them.

    Attributes:
        num_live_tokens: Slots that nodes own.
        num_shared_tokens: Those in nodes that more than one branch can use.
        num_private_tokens: The rest.
        num_hole_tokens: Positions of nodes without a slot.
        num_unscored_tokens: Slots of private screenshots that have no stored scores, where others do: no step prunes
            them again, and they go as whole leaves. Reading or scoring them failed, or there was no memory for it.
        num_state_bytes: Memory of what branches remember of their trajectories; what several share counts once.
    """

    num_live_tokens: int
    num_shared_tokens: int
    num_private_tokens: int
    num_hole_tokens: int
    num_unscored_tokens: int
    num_state_bytes: int


def take_census(tree: StarRadixCache) -> TreeCensus:
    """Count the tree's slots."""
    live = shared = holes = unscored = 0
    tensors: dict[int, int] = {}
    for node in tree.nodes():
        extra, num_live = tree.extra(node), tree.num_live(node)
        live += num_live
        holes += extra.num_holes
        shared += num_live if extra.shared else 0
        if tree.ledger is not None and not extra.shared:
            unscored += sum(segment.num_live for segment in extra.segments if not segment.ident)
        if extra.state is not None:
            tensors |= {id(tensor): tensor.numel() * tensor.element_size() for tensor in extra.state.tensors}
    return TreeCensus(live, shared, live - shared, holes, unscored, sum(tensors.values()))


def tree_sizes(tree: StarRadixCache, counters: PolicyCounters) -> dict[str, int]:
    """The census without a walk through the tree."""
    live, private = tree.evictable_size() + tree.protected_size(), tree.sharing.private_size
    return {
        "live_tokens": live,
        "shared_tokens": live - private,
        "private_tokens": private,
        "peak_private_tokens": counters.peak_private_tokens,
    }


def report(
    tree: StarRadixCache, counters: PolicyCounters, kept: KeptByAge, stages: dict[str, StageTotal] | None
) -> dict[str, Any]:
    """Census, counters, what the allocator says is in use, and the means of what is a distribution.

    Args:
        tree: The tree.
        counters: What has happened.
        kept: What was kept of screenshots.
        stages: Time of the stages; None where nobody measures it.
    """
    allocator = tree.token_to_kv_pool_allocator
    used = {"num_pool_tokens": allocator.size, "num_used_pool_tokens": allocator.size - allocator.available_size()}
    times = {} if stages is None else {"stages": {name: asdict(total) for name, total in stages.items()}}
    return {
        **used,
        **asdict(take_census(tree)),
        **asdict(counters),
        "mean_kept_fraction_by_age": kept.means(),
        **times,
    }
