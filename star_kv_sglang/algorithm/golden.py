"""Golden files: recorded runs of the published scorer, replayed through the production functions.

A file holds one layer's trajectory: the window's queries, all keys, the hidden-state norms, intermediate values and
the kept positions of every step. The keys go into a scattered slot pool, so the page table is exercised too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from star_kv_sglang.algorithm.layout import FrameSpan, PromptLayout
from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.algorithm.pipeline import ScoredBatch, score_batch
from star_kv_sglang.algorithm.selection import paper_topk
from star_kv_sglang.algorithm.state import TrajectoryState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from star_kv_sglang.triton_ops.dispatch import Ops

RELATIVE_LIMIT = 1e-4
PARAMETER_NAMES = {
    "window": "observation_window",
    "kernel": "pool_width",
    "alpha": "boost_alpha",
    "temperature": "boost_temperature",
    "lam": "prior_lambda",
    "prof_steps": "prior_warmup_steps",
    "prof_decay": "prior_ema",
    "prof_tau": "prior_tau",
    "ramp": "prior_ramp_steps",
    "temporal": "temporal",
    "delta": "discount_delta",
    "rho": "discount_rho",
    "eps": "discount_eps",
    "dmin": "discount_floor",
    "aeb": "temperature",
    "tmin": "temperature_min",
    "tmax": "temperature_max",
    "smooth": "temperature_smoothing",
}
UNSUPPORTED_UNLESS = {"pooling": "avgpool", "warm": 0}


@dataclass(frozen=True)
class GoldenFile:
    """Arrays by name and the decoded `meta` of one file."""

    arrays: Mapping[str, np.ndarray[Any, Any]]
    meta: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> GoldenFile:
        """Read a file; raises ValueError when it is not a golden file."""
        try:
            with np.load(path) as archive:
                arrays = dict(archive)
            return cls(arrays, json.loads(arrays.pop("meta").tobytes()))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a golden file (an .npz with a JSON 'meta'): {error}") from error

    def params(self) -> ScorerParams:
        """The recorded parameters under our names; raises ValueError for a setting that we do not have."""
        values = {"grid": "square", "pattern_dtype": "float32"}
        for name, value in self.meta["params"].items():
            if name in PARAMETER_NAMES:
                values[PARAMETER_NAMES[name]] = value
            elif name not in UNSUPPORTED_UNLESS or value != UNSUPPORTED_UNLESS[name]:
                raise ValueError(f"the golden file was recorded with {name}={value!r}, which the scorer does not offer")
        return ScorerParams.from_mapping(values)


@dataclass
class ReplayReport:
    """How far the replay is from the record: positions that differ, largest relative error by value name."""

    kept_mismatch: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def max_rel_err(self) -> float:
        """The largest relative error of all values; infinity when one is not a number."""
        return max(self.errors.values(), default=0.0)

    @property
    def ok(self) -> bool:
        """Whether the kept sets are equal and every value is within the limit."""
        return self.kept_mismatch == 0 and self.max_rel_err <= RELATIVE_LIMIT

    def compare(self, name: str, got: torch.Tensor, recorded: np.ndarray[Any, Any] | float) -> None:
        """Note max |got - recorded| / max |recorded| of one value."""
        want = torch.as_tensor(recorded, dtype=torch.float64)
        have = got.detach().cpu().double()
        if have.shape != want.shape:
            raise ValueError(f"{name} has shape {list(have.shape)}, the record has {list(want.shape)}")
        error = ((have - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()
        error = error if math.isfinite(error) else math.inf
        self.errors[name] = max(self.errors.get(name, 0.0), error)


def replay_file(path: Path, device: torch.device, ops: Ops) -> ReplayReport:
    """Run a golden file through the production scorer on `device`; raises ValueError for a bad file."""
    golden = GoldenFile.load(path)
    params = golden.params()
    report, state = ReplayReport(), TrajectoryState()
    for index, step in enumerate(golden.meta["steps"]):
        arrays = {n.removeprefix(f"s{index}_"): a for n, a in golden.arrays.items() if n.startswith(f"s{index}_")}
        num_frames = len(golden.meta["steps"][0]["spans"]) + index  # every step brings one screenshot
        scores, scored = _score_step(arrays, step, num_frames, state, params, device, ops)
        state = scored.states[0]
        _compare_step(report, arrays, step, scores, scored)
    return report


def _score_step(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    step: Mapping[str, Any],
    num_frames: int,
    state: TrajectoryState,
    params: ScorerParams,
    device: torch.device,
    ops: Ops,
) -> tuple[torch.Tensor, ScoredBatch]:
    """Group scores [1, G, T] (boosted) and everything that follows from them."""
    window, num_live = step["window"], step["T"]
    query = torch.from_numpy(arrays["q"]).to(device).transpose(0, 1).contiguous()
    key_cache, kv_indices = _scatter_keys(torch.from_numpy(arrays["k"]), num_frames, device)
    kv_indptr = torch.tensor([0, num_live], dtype=torch.int32, device=device)
    layout = _layout(step, num_frames)
    group_scores = torch.full((1, key_cache.shape[1], num_live), float("nan"), device=device)
    ops.window_scores(
        query,
        torch.tensor([0, window], dtype=torch.int32, device=device),
        key_cache,
        kv_indices,
        kv_indptr,
        sm_scale=query.shape[-1] ** -0.5,
        pool_width=params.pool_width,
        max_window=window,
        max_num_live=num_live,
        out=group_scores[0],
    )
    offsets = torch.zeros(1, num_live, dtype=torch.int32, device=device)
    for frame in layout.frames:
        offsets[0, frame.start : frame.end] = torch.arange(frame.num_live, device=device)
    norms = torch.from_numpy(arrays["hidden_norm"]).to(device)[None]
    scored = score_batch(group_scores, [layout], kv_indptr, offsets, norms, [state], params, ops=ops, keep_steps=True)
    return group_scores, scored


def _scatter_keys(keys: torch.Tensor, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Put keys [G, T, D] into random slots of a pool full of NaN; the pool [slots, G, D] and the slots [T]."""
    num_groups, num_live, head_dim = keys.shape
    num_slots = 2 * num_live + 1
    slots = torch.randperm(num_slots - 1, generator=torch.Generator().manual_seed(seed))[:num_live] + 1
    pool = torch.full((num_slots, num_groups, head_dim), float("nan"))
    pool[slots] = keys.transpose(0, 1)
    return pool.to(device), slots.to(device=device, dtype=torch.int32)


def _layout(step: Mapping[str, Any], num_frames: int) -> PromptLayout:
    num_past = step["T"] - step["window"]
    frames = tuple(FrameSpan(start, min(end, num_past), 1, min(end, num_past) - start) for start, end in step["spans"])
    return PromptLayout(step["T"], step["window"], frames, num_frames_total=num_frames)


def _compare_step(
    report: ReplayReport,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    step: Mapping[str, Any],
    group_scores: torch.Tensor,
    scored: ScoredBatch,
) -> None:
    state, steps = scored.states[0], scored.steps
    if steps is None:
        raise ValueError("score_batch was not asked for its intermediate values")
    num_past = step["T"] - step["window"]
    report.compare("S", group_scores[0, :, :num_past], arrays["S"])
    report.compare("w_g", steps.head_weights[0, 0], arrays["w_g"])
    report.compare("lambda", torch.tensor(steps.prior_weights[0]), step["lam"])
    report.compare("fused", steps.fused[0, :num_past], arrays["fused"])
    report.compare("discounted", steps.discounted[0, :num_past], arrays["discounted"])
    report.compare("final", steps.final[0, :num_past], arrays["final"])
    if "mi_ema" in arrays and state.mi_ema is not None:
        report.compare("mi_ema", state.mi_ema[0], arrays["mi_ema"])
    if "pattern_ema" in arrays and state.pattern_ema is not None:
        pattern = state.pattern_ema[0]
        report.compare("pattern_ema", pattern / pattern.shape[-1], arrays["pattern_ema"])
    if step["temperature"] is not None:
        report.compare("temperature", scored.temperature[0, 0], step["temperature"])
    missing = [n for n in ("mi_ema", "pattern_ema") if n in arrays and getattr(state, n) is None]
    if missing:
        raise ValueError(f"the record has {', '.join(missing)}, the replayed state does not")
    kept = paper_topk(steps.final[0, :num_past], step["window"], step["capacity"])
    report.kept_mismatch += len(set(kept.tolist()) ^ set(arrays["kept"].tolist()))
