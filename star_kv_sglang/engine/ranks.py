"""Tensor parallel ranks: each holds some key heads, all score with all of them, and all decide alike or stop.

Layer inputs are the same on every rank. What follows from key heads is gathered once for a batch, behind its last
layer; then every rank computes the same scores and the same choice. Where SGLang replicates a key head, because there
are more ranks than key heads, each of its ranks has other query heads of the group, and the group's attention is their
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from star_kv_sglang.engine.faults import DivergedError
from star_kv_sglang.engine.host_copy import HostCopy

if TYPE_CHECKING:
    from sglang.srt.model_executor.model_runner import ModelRunner

Gather = Callable[[torch.Tensor, torch.Tensor], None]
"""Fills the first tensor, [num_ranks, ...], with every rank's second one, [...], in the order of the ranks."""


@dataclass(frozen=True)
class Agreement:
    """What every rank has decided so far, on its way to the host.

    Attributes:
        sums: int64 [num_ranks, 2]: of what this batch keeps, and of all that was cut before it.
        turn: What it is the turn of.
    """

    sums: HostCopy
    turn: str

    def require(self) -> None:
        """Wait for the sums and compare them.

        Raises:
            DivergedError: Ranks have decided differently.
        """
        rows = [tuple(row) for row in self.sums.wait().tolist()]
        if len(set(rows)) > 1:
            told = "; ".join(f"rank {rank}: {kept:016x} {cut:08x}" for rank, (kept, cut) in enumerate(_unsigned(rows)))
            raise DivergedError(
                f"tensor parallel ranks have decided differently in the turn of {self.turn} (sums of what it keeps and "
                f"of all that was cut before it: {told}). Their pools do not fit together any more; restart the server"
            )


def _unsigned(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    return [(kept % 2**64, cut % 2**32) for kept, cut in rows]


class Ranks:
    """The ranks that hold one model together, as one of them sees them.

    Args:
        size: How many there are.
        rank: This one.
        num_groups: Key heads of a layer, of the whole model.
        gather: Of tensors on the model's device; None where there is one rank.
    """

    def __init__(self, size: int, rank: int, num_groups: int, gather: Gather | None = None) -> None:
        self.size = size
        self.rank = rank
        self.num_groups = num_groups
        self._gather = gather

    @classmethod
    def of_model(cls, runner: ModelRunner) -> Ranks:
        """Of SGLang's tensor parallel group."""
        from sglang.srt.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        num_groups: int = runner.model_config.get_total_num_kv_heads()
        if group.world_size == 1:
            return cls(1, 0, num_groups)
        return cls(group.world_size, group.rank_in_group, num_groups, group.all_gather_into_tensor)

    def all_groups(self, scores: torch.Tensor) -> torch.Tensor:
        """Attention of the key heads of all ranks.

        Args:
            scores: float32 [L, g, N], of this rank's g key heads.

        Returns:
            float32 [L, G, N]; what was given where there is one rank.
        """
        if self._gather is None:
            return scores
        parts = self._gathered(scores)
        _, num_layers, num_local, num_tokens = parts.shape
        num_replicas = self.size * num_local // self.num_groups
        if num_replicas > 1:
            parts = parts.view(self.num_groups, num_replicas, num_layers, num_tokens).mean(dim=1)
            return parts.transpose(0, 1).contiguous()
        return parts.transpose(0, 1).reshape(num_layers, self.num_groups, num_tokens)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the ranks of what each has of its own heads.

        Args:
            values: float32.

        Returns:
            float32, of the same shape; what was given where there is one rank.
        """
        return values if self._gather is None else self._gathered(values).mean(dim=0)

    def agree(self, decided: Sequence[torch.Tensor], cut: int, turn: str) -> Agreement | None:
        """Tell the other ranks what this one has decided.

        Args:
            decided: What this batch keeps: float32 or int32, on the model's device.
            cut: Sum of all that was cut before.
            turn: What an error names.

        Returns:
            What is to be looked at before anything is moved; None where there is one rank.
        """
        if self._gather is None:
            return None
        device = decided[0].device
        sums = torch.stack([_sum_of(decided), torch.full((), cut, dtype=torch.int64, device=device)])
        return Agreement(HostCopy.start(self._gathered(sums)), turn)

    def _gathered(self, part: torch.Tensor) -> torch.Tensor:
        if self._gather is None:
            raise RuntimeError("one rank has nothing to gather")
        whole = torch.empty((self.size, *part.shape), dtype=part.dtype, device=part.device)
        self._gather(whole.view(-1), part.contiguous().view(-1))
        return whole


def _sum_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number that changes where any bit of any tensor does, but for a chance of about 1 in 2**64; int64 []."""
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        bits = tensor.contiguous().view(torch.int32).flatten().long()
        odd = torch.arange(1, 2 * bits.numel(), 2, device=bits.device)
        # Products run over, and wrap the same way everywhere.
        total = total * 0x9E3779B1 + (bits * (odd * 0x9E3779B97F4A7C1)).sum()
    return total
