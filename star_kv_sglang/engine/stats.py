"""Counters of the policy and a census of the tree, for the server's info page and the metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from star_kv_sglang.cache.radix_cache import StarRadixCache


@dataclass
class PolicyCounters:
    """What has happened since the start.

    Attributes:
        num_prunes: Prompts after which something was pruned.
        num_pruned_tokens: Slots that were freed by pruning.
        num_scored_prompts: Prompts that were scored.
        num_skipped_segments: Segments that had changed, or had become shared, between choice and prune.
        num_budget_steps: Times that the private nodes had to be brought below the tree-wide budget.
        num_budget_evicted_tokens: Slots of leaves that were dropped because pruning did not suffice for it.
        num_budget_misses: Times that even this did not suffice.
        num_shrinks: Times that segments nobody held were pruned because the pool ran short.
        num_shrunk_tokens: Slots that were freed by it.
        num_avoided_evictions: Times that it freed enough, so that no leaf was dropped.
        num_pruner_faults: Times that scoring or pruning failed with an error and did not take place.
        num_recency_fallbacks: Prompts whose scores were no numbers, so that their newest tokens were kept.
        peak_private_tokens: Most slots that private nodes held when a forward began.
    """

    num_prunes: int = 0
    num_pruned_tokens: int = 0
    num_scored_prompts: int = 0
    num_skipped_segments: int = 0
    num_budget_steps: int = 0
    num_budget_evicted_tokens: int = 0
    num_budget_misses: int = 0
    num_shrinks: int = 0
    num_shrunk_tokens: int = 0
    num_avoided_evictions: int = 0
    num_pruner_faults: int = 0
    num_recency_fallbacks: int = 0
    peak_private_tokens: int = 0


@dataclass(frozen=True)
class TreeCensus:
    """Slots of the tree, by who can use them.

    Attributes:
        num_live_tokens: Slots that nodes own.
        num_shared_tokens: Those in nodes that more than one branch can use.
        num_private_tokens: The rest.
        num_hole_tokens: Positions of nodes without a slot.
    """

    num_live_tokens: int
    num_shared_tokens: int
    num_private_tokens: int
    num_hole_tokens: int


def take_census(tree: StarRadixCache) -> TreeCensus:
    """Count the tree's slots."""
    live = shared = holes = 0
    for node in tree.nodes():
        extra, num_live = tree.extra(node), tree.num_live(node)
        live += num_live
        holes += extra.num_holes
        shared += num_live if extra.shared else 0
    return TreeCensus(live, shared, live - shared, holes)


def report(tree: StarRadixCache, counters: PolicyCounters) -> dict[str, int]:
    """Census, counters and what the allocator says is in use, as one flat mapping."""
    allocator = tree.token_to_kv_pool_allocator
    used = {"num_pool_tokens": allocator.size, "num_used_pool_tokens": allocator.size - allocator.available_size()}
    return {**used, **asdict(take_census(tree)), **asdict(counters)}
