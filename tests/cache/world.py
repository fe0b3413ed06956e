"""A tree over SGLang's real allocator and row pool, with requests that do what SGLang's scheduler does to them.

Every slot remembers, layer by layer, which token of which sequence its K and V belong to, so that a wrong move shows.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ReqKvInfo
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey

from star_kv_sglang.cache.ledger import SegmentLedger
from star_kv_sglang.cache.radix_cache import CacheListener, KeptTokens, StarRadixCache, Stored
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.cache.side_pools import SidePools
from star_kv_sglang.engine.compaction import KVPools, Target, prune_path, prune_targets, punch_row, target_slots
from star_kv_sglang.engine.plan import plan_request
from star_kv_sglang.triton_ops.dispatch import get_ops

NUM_LAYERS = 2
MAX_LEN = 512


@dataclass(eq=False)
class FakeRequest:
    """The fields of SGLang's Req that the tree and the scheduler touch."""

    rid: str
    origin_input_ids: array[int]
    frames: tuple[Frame, ...]
    extra_key: str | None = None
    cache_salt: str | None = None
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    sampling_params: Any = field(default_factory=lambda: SimpleNamespace(custom_params=None))
    kv: ReqKvInfo = field(default_factory=ReqKvInfo)
    lock: Any = None
    last_node: Any = None
    prefix_len: int = 0
    extend_end: int = 0
    priority: int = 0
    num_live: int = 0
    planned: list[tuple[int, int, int]] = field(default_factory=list)
    prefilled: bool = False
    is_over: bool = False
    skip_radix_cache_insert: bool = False
    finished_len: int | None = None

    @property
    def full_untruncated_fill_ids(self) -> array[int]:
        return self.origin_input_ids + self.output_ids

    @property
    def kv_len(self) -> int:
        """Positions with K and V."""
        return self.kv.kv_committed_len

    def get_fill_ids(self) -> array[int]:
        return self.full_untruncated_fill_ids[: self.extend_end]

    def refresh_fill_ids(self) -> None:
        """SGLang appends the newest output here."""

    def owned_kv_len(self) -> int:
        return self.kv.kv_committed_len

    def finished(self) -> bool:
        return self.is_over


class PruneAtRandom(CacheListener):
    """Prunes every private segment of a prompt to a random number of random tokens."""

    def __init__(self, world: TreeWorld) -> None:
        self.world = world

    def on_stored(self, tree: StarRadixCache, stored: Stored) -> None:
        req: Any = stored.req
        tree.label_frames(stored.path, req.frames)
        kept = self.world.choices.pop(req.rid, None) if stored.ends_prompt else None
        if kept is not None:
            private_from = max(tree.sharing.shared_until(stored.path), self.world.peer_prefix_len(req))
            prune_path(tree, stored, kept, self.world.pools, get_ops("reference"), private_from=private_from)


class TreeWorld:
    """One tree, its pools, and the requests that run on it.

    Args:
        num_slots: Slots of the pool.
        page_size: Of the pool and the tree.
        seed: Of every random choice.
        eviction_policy: Of SGLang.
    """

    def __init__(self, num_slots: int, page_size: int, seed: int, *, eviction_policy: str = "lru") -> None:
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.num_slots = num_slots
        if page_size == 1:
            self.allocator: Any = TokenToKVPoolAllocator(num_slots, torch.bfloat16, "cpu", SimpleNamespace(), False)
        else:
            self.allocator = PagedTokenToKVPoolAllocator(
                num_slots, page_size, torch.bfloat16, "cpu", SimpleNamespace(), False
            )
        self.rows = ReqToTokenPool(size=32, max_context_len=MAX_LEN, device="cpu", enable_memory_saver=False)
        self.choices: dict[str, list[KeptTokens]] = {}
        self.running: list[FakeRequest] = []
        self.tree = StarRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.allocator,
                page_size=page_size,
                eviction_policy=eviction_policy,
            ),
            self.make_listener(),
            self.make_ledger(),
        )
        shape = (NUM_LAYERS, num_slots + page_size)
        self.key_token = torch.full((*shape, 1, 2), -1, dtype=torch.int64)
        self.pools = KVPools(
            [self.key_token[i] for i in range(NUM_LAYERS)],
            [self.key_token.clone()[i] for i in range(NUM_LAYERS)],
            SidePools.allocate(
                NUM_LAYERS,
                shape[1],
                norm_dtype=torch.float32,
                device="cpu",
                with_scores=self.tree.ledger is not None,
            ),
        )
        self._next = 0
        self._sequence_ids: dict[tuple[str | None, tuple[int, ...]], int] = {}

    def make_listener(self) -> CacheListener:
        """What the tree tells about prompts."""
        return PruneAtRandom(self)

    def make_ledger(self) -> SegmentLedger | None:
        """Where scored segments are noted, if they are."""
        return None

    def prunes_next(self) -> bool:
        """Whether the prompt that ends now is pruned."""
        return True

    def admit(self, prompt: array[int], frames: tuple[Frame, ...], extra_key: str | None) -> FakeRequest | None:
        """Match, lock, give a row. None when no row is free."""
        if not self.rows.free_slots:
            return None
        self._next += 1
        req = FakeRequest(f"r{self._next}", prompt, frames, extra_key)
        match = self.tree.match_prefix(MatchPrefixParams(key=RadixKey(prompt, extra_key, limit=len(prompt) - 1)))
        req.prefix_len, req.last_node = match.device_prefix_len, match.last_device_node
        req.kv.cache_protected_len = req.prefix_len
        req.lock = self.tree.lock(req.last_node)
        self.tree.sharing.continue_branch(req.last_node, len(prompt))
        self.rows.alloc([req])  # type: ignore[list-item]
        prefix = self.tree.prefix_device_indices(req)  # type: ignore[arg-type]
        self.rows.write((req.kv.req_pool_idx, slice(0, req.prefix_len)), prefix.to(torch.int32))
        req.kv.kv_committed_len = req.kv.kv_allocated_len = req.prefix_len
        self.running.append(req)
        return req

    def prefill(self, req: FakeRequest, end: int) -> bool:
        """Compute positions up to ``end``; plan a random prune when it ends the prompt. False when the pool is too
        small.
        """
        if not self._grow(req, end):
            return False
        req.extend_end = end
        last = end == len(req.full_untruncated_fill_ids)
        plan = plan_request(
            self.tree,
            req,  # type: ignore[arg-type]
            self.tree.path(req.last_node),
            req.frames,
            start=req.prefix_len,
            end=end,
            is_last_chunk=last,
            observation_window=self.rng.randint(1, 8),
            budget=0.5,
            peer_prefix_len=self.peer_prefix_len(req),
        )
        if last:
            req.planned = [(segment.start, segment.end, segment.num_live) for segment in plan.segments]
            if self.prunes_next():
                self.choices[req.rid] = [self._random_choice(segment) for segment in plan.segments]
            req.prefilled = True
        req.num_live = plan.layout.num_live
        return True

    def _random_choice(self, segment: Any) -> KeptTokens:
        pages = segment.num_live // self.page_size
        keep = self.rng.randint(0, pages) * self.page_size
        chosen = torch.stack(
            [
                torch.tensor(sorted(self.rng.sample(range(segment.num_live), keep)), dtype=torch.int64)
                for _ in range(NUM_LAYERS)
            ]
        )
        return KeptTokens(segment.start, segment.end, segment.num_live, chosen)

    def decode(self, req: FakeRequest, token: int) -> bool:
        """One more token: the last one's KV is computed."""
        if len(req.full_untruncated_fill_ids) + 1 >= MAX_LEN:
            return False
        req.output_ids.append(token)
        return self._grow(req, len(req.full_untruncated_fill_ids) - 1)

    def store(self, req: FakeRequest) -> None:
        """What a running request has computed goes into the tree, and its prompt is pruned when it has ended."""
        checkpoint_kv_cache(req, self.tree)  # type: ignore[arg-type]

    def pin(self, req: FakeRequest, *, at_most: int) -> bool:
        """The request asks to keep its path whole; tells whether it is."""
        return self.tree.sharing.pin(self.tree.path(req.last_node), at_most=at_most)

    def shared_until(self, req: FakeRequest) -> int:
        """Position up to which the request's path is shared."""
        return self.tree.sharing.shared_until(self.tree.path(req.last_node))

    def finish(self, req: FakeRequest, *, is_insert: bool) -> None:
        """The request ends; aborted ones are not inserted."""
        self.choices.pop(req.rid, None) if not is_insert else None
        req.is_over = True
        if req.kv.kv_allocated_len:
            release_kv_cache(req, self.tree, checkpoint=is_insert)  # type: ignore[arg-type]
        else:  # it was matched and got no slot: SGLang would not have given it a row yet
            self.tree.unlock(req.lock)
            self.tree.on_release(req, checkpointed=False)  # type: ignore[arg-type]
            self.rows.free(req)  # type: ignore[arg-type]
        self.running.remove(req)

    def evict(self, num_tokens: int) -> None:
        """Free slots."""
        self.tree.evict(EvictParams(num_tokens=num_tokens))

    def prune_unheld(self, num_segments: int) -> None:
        """Prune some private segments that no request holds, sealed or not, to random numbers of random tokens."""
        idle = [n for n in self.tree.nodes() if n.lock_ref == 0 and not self.tree.extra(n).shared]
        found = [(node, segment) for node in idle for segment in self.tree.extra(node).segments]
        for node, segment in self.rng.sample(found, min(num_segments, len(found))):
            chosen = self._random_choice(segment).chosen
            target = Target(node, segment, chosen.shape[1])
            if target.num_keep < segment.num_live:
                kept = torch.full((NUM_LAYERS, segment.num_live), -1, dtype=torch.int32)
                kept[:, : target.num_keep] = chosen
                slots = target_slots(self.tree, target)
                prune_targets(self.tree, [target], slots, kept, self.pools, get_ops("reference"))

    def leave_out(self, req: FakeRequest, num_segments: int) -> None:
        """The request's client has left screenshots out of its prompt that lie on its path: those that only it can
        see keep nothing, before it computes anything.
        """
        path = self.tree.path(req.last_node)
        private_from = max(self.shared_until(req), self.peer_prefix_len(req))
        found = [(node, segment) for node in path for segment in self.tree.extra(node).segments]
        found = [(node, one) for node, one in found if one.start >= private_from and one.num_live]
        targets = [Target(node, one, 0) for node, one in self.rng.sample(found, min(num_segments, len(found)))]
        for target in targets:
            slots = target_slots(self.tree, target)
            nothing = torch.full((NUM_LAYERS, len(slots)), -1, dtype=torch.int32)
            prune_targets(self.tree, [target], slots, nothing, self.pools, get_ops("reference"))
            punch_row(self.tree, req, target)  # type: ignore[arg-type]

    def flush(self) -> None:
        """Forget everything; only when idle."""
        self.tree.reset()
        self.allocator.clear()
        self.rows.clear()

    def peer_prefix_len(self, req: FakeRequest) -> int:
        """Longest prefix in common with a running request that is not in the tree yet."""
        key = RadixKey(req.origin_input_ids)
        peers = (p for p in self.running if p is not req and p.extra_key == req.extra_key and not p.prefilled)
        return max((key.match(RadixKey(p.origin_input_ids)) for p in peers), default=0)

    def _grow(self, req: FakeRequest, end: int) -> bool:
        """Give the request slots for positions up to ``end`` and write what they hold."""
        start = req.kv_len
        allocated = -(-start // self.page_size) * self.page_size
        need = max(0, -(-end // self.page_size) * self.page_size - allocated)
        if self.allocator.available_size() < need:
            self.evict(need - self.allocator.available_size())
        if self.allocator.available_size() < need:
            return False
        row = self.rows.req_to_token[req.kv.req_pool_idx]
        fresh = self.allocator.alloc(need) if need else torch.empty(0, dtype=torch.int64)
        slots = torch.cat([self._rest_of_page(row, start), fresh])[: end - start]
        row[start:end] = slots.to(torch.int32)
        req.kv.kv_committed_len = req.kv.kv_allocated_len = end
        self._write_tokens(req, start, end, slots.long())
        return True

    def _rest_of_page(self, row: torch.Tensor, start: int) -> torch.Tensor:
        used = start % self.page_size
        if used == 0:
            return torch.empty(0, dtype=torch.int64)
        last = int(row[start - 1])
        return torch.arange(last + 1, last + 1 + self.page_size - used)

    def _write_tokens(self, req: FakeRequest, start: int, end: int, slots: torch.Tensor) -> None:
        tokens = req.full_untruncated_fill_ids
        for position, slot in zip(range(start, end), slots.tolist(), strict=True):
            identity = torch.tensor([position, self.identity(req.extra_key, tokens, position)])
            for layer in range(NUM_LAYERS):
                self.pools.keys[layer][slot, 0] = identity
                self.pools.values[layer][slot, 0] = identity

    def identity(self, extra_key: str | None, tokens: Sequence[int], position: int) -> int:
        """A number for "this token after exactly these tokens"."""
        name = (extra_key, tuple(tokens[: position + 1]))
        return self._sequence_ids.setdefault(name, len(self._sequence_ids))
