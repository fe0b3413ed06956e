"""The trace of one pruned segment, as a server with ``trace_dir`` writes it."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from star_kv_sglang.errors import StarKVError


class TraceError(StarKVError, ValueError):
    """A trace file cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class PruneTrace:
    """Which tokens of a screenshot's segment every layer kept.

    Attributes:
        path: the file.
        kept: int32 [num_layers, n], raster offsets in the screenshot's token grid.
        request_id: the request whose prompt was pruned.
        frame_index, num_frames: which of the prompt's screenshots, from 0, and how many it has.
        rows, cols: the token grid.
        segment: first raster offset of the segment, and the one behind its last.
        budget: share of the private visual tokens that was to stay.
    """

    path: Path
    kept: NDArray[np.int32]
    request_id: str
    frame_index: int
    num_frames: int
    rows: int
    cols: int
    segment: tuple[int, int]
    budget: float

    def kept_fraction(self) -> NDArray[np.float64]:
        """float64 [rows, cols]: fraction of layers that keep each token; 1 outside the segment, which is whole."""
        fraction = np.ones(self.rows * self.cols)
        start, end = self.segment
        counts = np.bincount(self.kept.ravel(), minlength=fraction.size)
        fraction[start:end] = counts[start:end] / self.kept.shape[0]
        return fraction.reshape(self.rows, self.cols)


def require_match(trace: PruneTrace, width: int, height: int) -> None:
    """Make sure that a picture can be the trace's screenshot: a model sees it resized, in the proportions that it has.

    Args:
        trace: of one screenshot.
        width, height: pixels of the picture.

    Raises:
        TraceError: The picture's proportions are not those of the trace's grid.
    """
    # Pixels for each token are the same in both directions; sizes are rounded to whole tokens, by less than one, and a
    # thin side to one.
    least_across, least_down = width / (trace.cols + 1), height / (trace.rows + 1)
    most_across = width / (trace.cols - 1) if trace.cols > 1 else math.inf
    most_down = height / (trace.rows - 1) if trace.rows > 1 else math.inf
    if most_across <= least_down or most_down <= least_across:
        raise TraceError(
            f"{trace.path}: has {trace.rows} rows of {trace.cols} tokens, and a picture of {width} x {height} has "
            f"other proportions; give screenshot {trace.frame_index + 1} of {trace.num_frames} of request "
            f"{trace.request_id}"
        )


def load_trace(path: Path) -> PruneTrace:
    """Reads a trace.

    Raises:
        TraceError: the file is missing, is no trace, or contradicts itself.
    """
    try:
        with np.load(path) as arrays:
            kept, meta = arrays["kept"], json.loads(bytes(arrays["meta"]).decode())
        trace = _build(path, kept, meta)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: is no trace of a pruned segment ({error!r})") from error
    start, end = trace.segment
    if not 0 <= start < end <= trace.rows * trace.cols:
        raise TraceError(f"{path}: segment {trace.segment} is not inside the grid {trace.rows} x {trace.cols}")
    if trace.kept.ndim != 2 or trace.kept.shape[0] == 0:
        raise TraceError(f"{path}: 'kept' must be [num_layers, n], not {trace.kept.shape}")
    if trace.kept.size and not (start <= trace.kept.min() and trace.kept.max() < end):
        raise TraceError(f"{path}: kept offsets lie outside the segment {trace.segment}")
    return trace


def last_traces(folder: Path, request_ids: Iterable[str]) -> dict[int, PruneTrace]:
    """The last prune of each screenshot by any of these requests (one branch's), by the screenshot's index."""
    wanted = frozenset(request_ids)
    traces = (load_trace(path) for path in sorted(folder.glob("*.npz")))
    return {trace.frame_index: trace for trace in traces if trace.request_id in wanted}


def live_tokens(folder: Path, requests: Iterable[tuple[str, int]]) -> list[int]:
    """Tokens of a branch's prompts that are live when each has been pruned.

    Args:
        folder: with the traces of all requests.
        requests: of one branch, in order: each one's id, and its prompt's tokens.
    """
    by_request: dict[str, list[PruneTrace]] = {}
    for path in sorted(folder.glob("*.npz")):
        trace = load_trace(path)
        by_request.setdefault(trace.request_id, []).append(trace)
    pruned: dict[tuple[int, tuple[int, int]], int] = {}
    live = []
    for request_id, num_tokens in requests:
        for trace in by_request.get(request_id, ()):
            start, end = trace.segment
            pruned[trace.frame_index, trace.segment] = end - start - trace.kept.shape[1]
        live.append(num_tokens - sum(pruned.values()))
    return live


def _build(path: Path, kept: NDArray[Any], meta: dict[str, Any]) -> PruneTrace:
    rows, cols = meta["grid"]
    start, end = meta["segment"]
    return PruneTrace(
        path=path,
        kept=kept.astype(np.int32),
        request_id=str(meta["rid"]),
        frame_index=int(meta["frame_index"]),
        num_frames=int(meta["num_frames"]),
        rows=int(rows),
        cols=int(cols),
        segment=(int(start), int(end)),
        budget=float(meta["budget"]),
    )
