"""FastGen (arXiv 2310.01801): the structure of each head's attention says what it keeps.

The paper profiles each head once, behind the prompt, and gives it the cheapest of a few policies that recover most of
its attention: special tokens; these and punctuation; these and the most recent tokens; these and the most frequent
ones; all. Here all heads of a request share one page table, so that each holds equally many tokens, and text always
stays. What is left of the choice:

- A head whose attention lies on text and on the most recent visual tokens of its budget, to a share of ``recovered``,
  keeps these (the paper's *special + punctuation + local*). So does one that text alone satisfies: its slots are there
  anyway.
- Every other head keeps the visual tokens that got most attention (*special + punctuation + frequent*). One that would
  need all of them gets no more.

The paper's profile is of all queries of the prompt; here it is of its last ``observation_window``, because after a
prune per head nobody can say which token's sum a slot would hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from star_kv_sglang.limits import POSITIVE_SHARE, limited
from star_kv_sglang.policies.base.interface import KVPolicy, Observation, PolicyScores
from star_kv_sglang.policies.base.params import WindowParams
from star_kv_sglang.policies.base.steps import calibrate


@dataclass(frozen=True)
class Params(WindowParams):
    """Of the profile.

    Attributes:
        recovered: Share of a head's attention that its structure must hold, in (0, 1].
    """

    recovered: float = limited(0.95, POSITIVE_SHARE)


class Policy(KVPolicy[Params]):
    """Every key head keeps its own tokens, by its own rule."""

    per_head = True
    needs_one_rank = True

    def score(self, seen: Observation) -> PolicyScores:
        """Attention of each head, or the order of the prompt where its attention is local."""
        attention = seen.attended.flatten(0, 1)  # [L * G, N]
        scores = attention.clone()
        for request in range(len(seen.layouts)):
            past = seen.past(request)
            if past.stop > past.start:
                local = self._is_local(attention, request, seen)
                age = torch.arange(1, past.stop - past.start + 1, device=scores.device, dtype=scores.dtype)
                scores[:, past] = torch.where(local[:, None], age, scores[:, past])
        return PolicyScores.of(calibrate(scores, seen), seen)

    def _is_local(self, attention: torch.Tensor, request: int, seen: Observation) -> torch.Tensor:
        """Heads that text and the most recent visual tokens of the budget satisfy, bool [L * G]."""
        past, layout = seen.past(request), seen.layouts[request]
        spans = [seen.frame(request, index) for index in range(len(layout.frames))]
        visual = torch.cat([torch.arange(span.start, min(span.stop, past.stop)) for span in spans] or [torch.arange(0)])
        size = sum(frame.rows * frame.cols for frame in layout.frames)
        recent = math.ceil(seen.budgets[request] * size)
        old = visual[: max(0, len(visual) - recent)].to(attention.device, non_blocking=True)
        total = attention[:, past].sum(dim=1)
        return attention[:, old].sum(dim=1) <= (1 - self.params.recovered) * total
