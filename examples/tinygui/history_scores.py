"""Which scores of a screen's tokens keep what a later, unknown question needs?

``python -m tinygui.history_scores`` (from ``examples/``). Every earlier screen is pruned at the end of its own prompt,
layer by layer, to the same share; what is dropped is hidden from all later tokens, so later screens are computed over
pruned ones, exactly as on a server that keeps pruned KV. Then the last turn asks about the earlier screens.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from star_kv_sglang.tools.rollout.trajectory import Question
from tinygui.accuracy import MODEL
from tinygui.frame_scores import SCORES, FrameView, Score
from tinygui.recall import Packed, RecallModel, recall_cases
from tinygui.worlds import PANELS, WORLDS

GRID = (9, 14)
ATTENTION = "pruned_history"
BATCH = 4


class PrunedHistory:
    """Attention that prunes each earlier screen at the end of its prompt.

    Args:
        recall: The model; its language model's attention is replaced.
    """

    def __init__(self, recall: RecallModel) -> None:
        self._recall = recall
        self._packed: Packed | None = None
        self._score: Score | None = None
        self._keep = 0
        self._hidden: torch.Tensor | None = None
        self._generator = torch.Generator()
        AttentionInterface.register(ATTENTION, self._attend)
        recall.text.config._attn_implementation = ATTENTION
        for layer in recall.text.layers:
            layer.self_attn.register_forward_pre_hook(self._note_hidden, with_kwargs=True)

    @torch.inference_mode()
    def answers(self, packed: Packed, score: Score | None, keep: int, seed: int) -> list[tuple[Question, bool]]:
        """Ask the recalls of a batch with ``keep`` tokens of each earlier screen; everything with score None."""
        self._packed, self._score, self._keep = packed, score, keep
        self._generator.manual_seed(seed)
        hidden = self._recall.text(
            inputs_embeds=packed.embeds,
            position_ids=packed.position_ids,
            visual_pos_masks=packed.visual,
            deepstack_visual_embeds=packed.deepstack,
            use_cache=False,
        ).last_hidden_state
        return self._recall.accuracy(packed, hidden)

    def _note_hidden(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        del module, args
        self._hidden = kwargs["hidden_states"]

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        del module, attention_mask, kwargs
        packed, hidden = self._packed, self._hidden
        if packed is None or hidden is None:
            raise RuntimeError("the model ran outside of PrunedHistory.answers")
        sees = packed.visible.expand(len(query), -1, -1)
        if self._score is not None:
            sees = sees.clone()
            view = kept = None
            for (start, end), prompt_end in zip(packed.frames, packed.prompt_ends, strict=False):
                view = FrameView(
                    hidden[:, start:end],
                    key[:, :, start:end],
                    value[:, :, start:end],
                    query[:, :, start:prompt_end],
                    key[:, :, :prompt_end],
                    sees[:, start:prompt_end, :prompt_end],
                    start,
                    GRID,
                    view,
                    kept,
                    self._generator,
                )
                kept = torch.zeros(len(query), end - start, dtype=torch.bool, device=query.device)
                kept.scatter_(1, self._score(view).topk(self._keep, dim=1).indices, True)
                sees[:, prompt_end:, start:end] &= kept[:, None]
        heads = query.shape[1] // key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1), attn_mask=sees[:, None]
        )
        return out.transpose(1, 2), None


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's interval of 95% for a share."""
    share, z = right / asked, 1.96
    centre = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return centre - half, centre + half


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Which scores keep what later questions need?")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model's folder")
    parser.add_argument("--world", choices=list(WORLDS), default=PANELS.name)
    parser.add_argument("--seed", type=int, default=8_000_000)
    parser.add_argument("--count", type=int, default=20, help="trajectories")
    parser.add_argument("--recalls", type=int, default=10, help="questions a trajectory")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=list(SCORES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="append a JSON line with every answer here")
    args = parser.parse_args()
    recall = RecallModel(args.model, args.device)
    cases = recall_cases(args.seed, args.count, num_recalls=args.recalls, world=WORLDS[args.world])
    batches = [recall.pack(cases[i : i + BATCH]) for i in range(0, len(cases), BATCH)]
    history = PrunedHistory(recall)
    full = [result for batch in batches for result in history.answers(batch, None, 0, 0)]
    print(f"full: {sum(ok for _, ok in full)} of {len(full)}", flush=True)
    for budget in args.budgets:
        keep = int(budget * GRID[0] * GRID[1])
        for name in args.scores:
            results = [r for i, b in enumerate(batches) for r in history.answers(b, SCORES[name], keep, args.seed + i)]
            right = sum(ok for _, ok in results)
            low, high = interval(right, len(results))
            print(f"{budget:.2f} {name:40} {right / len(results):.3f} ({low:.2f}-{high:.2f})", flush=True)
            if args.out:
                row = {"model": args.model.name, "world": args.world, "budget": budget, "score": name}
                row |= {"right": [ok for _, ok in results], "back": [question.back for question, _ in results]}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
