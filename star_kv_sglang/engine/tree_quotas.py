"""One threshold for the whole tree: how many tokens every scored segment keeps under one budget, on the device.

The scores of a segment are those that each layer's tokens had when they were last scored, so that a segment can be cut
again without a query. Layers hold different tokens in the same slot; what competes is therefore every layer's every
token, and a segment keeps as many slots as its layers have tokens above the threshold on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from star_kv_sglang.triton_ops.dispatch import Ops

LOWEST = -(2**15)
"""Of the keys, which are int16."""
WAYS = 16
STEPS = (16**3, 16**2, 16, 1)
"""The search asks for as many thresholds at once as `count_above` takes; four rounds tell all keys apart."""


@dataclass(frozen=True)
class Contest:
    """The segments that compete, S of them.

    Attributes:
        idents: int64 [S], their numbers in the ledger.
        num_live: int64 [S], live tokens.
        floors: int64 [S], tokens that stay in any case, multiples of the page size or ``num_live``.
        branches: int64 [S], the branch of each, 0 .. num_branches - 1.
        branch_floors: int64 [num_branches], tokens that stay of each branch.
        weights: float32 [S], factors of their scores; None for 1.
    """

    idents: npt.NDArray[np.int64]
    num_live: npt.NDArray[np.int64]
    floors: npt.NDArray[np.int64]
    branches: npt.NDArray[np.int64]
    branch_floors: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None

    @property
    def least(self) -> int:
        """Tokens that stay whatever the budget is."""
        per_branch = np.bincount(self.branches, self.floors, len(self.branch_floors))
        return int(np.maximum(per_branch, self.branch_floors).sum())


def tree_quotas(
    contest: Contest, scores: torch.Tensor, slot_ids: torch.Tensor, ops: Ops, *, budget: int, page_size: int
) -> npt.NDArray[np.int64]:
    """Tokens that each segment keeps, so that all together keep at most ``budget``, as far as the floors allow.

    Waits once for the device: the slots that come free must be known on the host.

    Args:
        contest: The segments.
        scores: float16 [U, num_slots].
        slot_ids: int32 [num_slots], the ledger's number of each slot's segment.
        ops: Kernels or references.
        budget: Tokens.
        page_size: Quotas are multiples of it, or all of a segment.

    Returns:
        int64 [S].
    """
    if budget <= contest.least or not contest.idents.size:
        return _with_branch_floors(contest, contest.floors, page_size)
    search = _ThresholdSearch.prepare(contest, scores, slot_ids, page_size, ops)
    # The highest key known to keep too much; all keys lie above it and at most 16 steps away from what fits.
    low = torch.full((1,), LOWEST, dtype=torch.int32, device=scores.device)
    ways = torch.arange(1, WAYS + 1, dtype=torch.int32, device=scores.device)
    for step in STEPS:
        too_many = search.totals(search.quotas(low + step * ways)) > budget
        low = low + step * too_many.sum(dtype=torch.int32)
    both = search.quotas(torch.cat([low, low + 1])).cpu().numpy()
    next_best, chosen = both[0], both[1]
    won = _with_branch_floors(contest, chosen, page_size)
    # Tokens of equal score stand at the threshold: the rest of the budget goes to them, segment by segment.
    spare = max(0, budget - int(won.sum()))
    more = np.maximum(next_best - won, 0)
    before = np.cumsum(more) - more
    extra = np.clip(spare - before, 0, more)
    return np.asarray(won + np.where(extra < more, extra // page_size * page_size, extra), np.int64)


def _with_branch_floors(contest: Contest, quotas: npt.NDArray[np.int64], page_size: int) -> npt.NDArray[np.int64]:
    """Raise the quotas of branches below their floor, of their newest segments first."""
    quotas = quotas.copy()
    held = np.bincount(contest.branches, quotas, len(contest.branch_floors)).astype(np.int64)
    for branch in np.flatnonzero(held < contest.branch_floors):
        missing = int(contest.branch_floors[branch] - held[branch])
        for index in np.flatnonzero(contest.branches == branch)[::-1]:
            given = min(-(-missing // page_size) * page_size, int(contest.num_live[index] - quotas[index]))
            quotas[index] += given
            missing -= given
            if missing <= 0:
                break
    return quotas


@dataclass(frozen=True)
class _ThresholdSearch:
    """What the segments keep above a threshold, on the device.

    Attributes:
        keys: int16 [U, n], scores as integers of the same order, segment after segment.
        indptr: int32 [S+1], packed bounds of the segments.
        num_live, floors, branch_floors: int32, as in the contest.
        branches: int64 [S], likewise.
        page_size: Of the pool.
        ops: Kernels or references.
    """

    keys: torch.Tensor
    indptr: torch.Tensor
    num_live: torch.Tensor
    floors: torch.Tensor
    branches: torch.Tensor
    branch_floors: torch.Tensor
    page_size: int
    ops: Ops

    @classmethod
    def prepare(
        cls, contest: Contest, scores: torch.Tensor, slot_ids: torch.Tensor, page_size: int, ops: Ops
    ) -> _ThresholdSearch:
        device = scores.device

        def upload(values: npt.NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        places = np.full(int(contest.idents.max()) + 1, -1, np.int32)
        places[contest.idents] = np.arange(len(contest.idents))
        table = upload(places)
        # A number beyond the table belongs to nobody who competes.
        known = slot_ids.long().clamp(max=len(places) - 1)
        place = torch.where(slot_ids < len(places), table[known], -1)
        num_tokens = int(contest.num_live.sum())
        slots = place.argsort(stable=True)[len(place) - num_tokens :]
        chosen = scores[:, slots]
        if contest.weights is not None:
            weights = upload(contest.weights)[place[slots]]
            chosen = torch.where(chosen > 0, chosen * weights, chosen).to(torch.float16)
        bits = chosen.view(torch.int16)
        keys = torch.where(bits < 0, LOWEST - 1 - bits, bits)  # sign and magnitude to an order of integers
        return cls(
            keys,
            upload(np.concatenate([[0], np.cumsum(contest.num_live)]).astype(np.int32)),
            upload(contest.num_live.astype(np.int32)),
            upload(contest.floors.astype(np.int32)),
            upload(contest.branches),
            upload(contest.branch_floors.astype(np.int32)),
            page_size,
            ops,
        )

    def quotas(self, thresholds: torch.Tensor) -> torch.Tensor:
        """Tokens that each segment keeps, int32 [T, S], when all above a key stay; thresholds are int32 [T]."""
        num_units = len(self.keys)
        slots = (self.ops.count_above(self.keys, self.indptr, thresholds) + (num_units - 1)) // num_units
        if self.page_size > 1:
            slots = slots // self.page_size * self.page_size
        return torch.minimum(torch.maximum(slots, self.floors), self.num_live)

    def totals(self, quotas: torch.Tensor) -> torch.Tensor:
        """Tokens that all segments keep together, int64 [T], the floors of the branches included."""
        held = quotas.new_zeros(len(quotas), len(self.branch_floors)).index_add_(1, self.branches, quotas)
        return torch.maximum(held, self.branch_floors).sum(dim=1)
