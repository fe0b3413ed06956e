"""All references under the names that the engine calls."""

from __future__ import annotations

from star_kv_sglang.triton_ops.apart_quotas.reference import apart_quotas
from star_kv_sglang.triton_ops.compact.reference import compact
from star_kv_sglang.triton_ops.count_above.reference import count_above
from star_kv_sglang.triton_ops.deal_distances.reference import deal_distances
from star_kv_sglang.triton_ops.frame_means.reference import frame_means
from star_kv_sglang.triton_ops.frame_norms.reference import frame_norms
from star_kv_sglang.triton_ops.frame_stability.reference import frame_stability
from star_kv_sglang.triton_ops.fuse_scores.reference import fuse_scores
from star_kv_sglang.triton_ops.gather_frames.reference import gather_frames
from star_kv_sglang.triton_ops.group_distances.reference import group_distances
from star_kv_sglang.triton_ops.keep_scores.reference import keep_scores
from star_kv_sglang.triton_ops.kept_copies.reference import kept_copies
from star_kv_sglang.triton_ops.mark_sinks.reference import mark_sinks
from star_kv_sglang.triton_ops.norm_excess.reference import norm_excess
from star_kv_sglang.triton_ops.page_table.reference import page_table
from star_kv_sglang.triton_ops.peak_ranks.reference import peak_ranks
from star_kv_sglang.triton_ops.place_scores.reference import place_scores
from star_kv_sglang.triton_ops.prior_factors.reference import prior_factors
from star_kv_sglang.triton_ops.select.reference import segment_quotas, select_topn
from star_kv_sglang.triton_ops.spatial_boost.reference import spatial_boost
from star_kv_sglang.triton_ops.spatial_mi.reference import spatial_mi
from star_kv_sglang.triton_ops.token_factors.reference import token_factors
from star_kv_sglang.triton_ops.window_scores.reference import window_scores


class ReferenceOps:
    """The ops in plain torch: the truth that the kernels are tested against, and what a CPU runs."""

    name = "reference"
    apart_quotas = staticmethod(apart_quotas)
    compact = staticmethod(compact)
    count_above = staticmethod(count_above)
    deal_distances = staticmethod(deal_distances)
    frame_means = staticmethod(frame_means)
    frame_norms = staticmethod(frame_norms)
    frame_stability = staticmethod(frame_stability)
    fuse_scores = staticmethod(fuse_scores)
    gather_frames = staticmethod(gather_frames)
    group_distances = staticmethod(group_distances)
    keep_scores = staticmethod(keep_scores)
    kept_copies = staticmethod(kept_copies)
    mark_sinks = staticmethod(mark_sinks)
    norm_excess = staticmethod(norm_excess)
    page_table = staticmethod(page_table)
    peak_ranks = staticmethod(peak_ranks)
    place_scores = staticmethod(place_scores)
    prior_factors = staticmethod(prior_factors)
    segment_quotas = staticmethod(segment_quotas)
    select_topn = staticmethod(select_topn)
    spatial_boost = staticmethod(spatial_boost)
    spatial_mi = staticmethod(spatial_mi)
    token_factors = staticmethod(token_factors)
    window_scores = staticmethod(window_scores)
