"""`star-kv bench budget`: what a step of the tree-wide budget costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def budget(
    branches: Annotated[int, typer.Option(min=1, help="Branches that share nothing.")] = 1000,
    screens: Annotated[int, typer.Option(min=1, help="Screenshots in each.")] = 5,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = 28,
    head_dim: Annotated[int, typer.Option(min=8, help="Head dimension; smaller ones need less memory.")] = 128,
    steps: Annotated[int, typer.Option(min=2, help="Steps; the first is not counted.")] = 12,
    csv: Annotated[Path | None, typer.Option(help="Append the result to this CSV.")] = None,
) -> None:
    """Fill a tree with pruned screenshots, 108 live tokens each, and free the room of one 1920x1080 screenshot again
    and again: threshold over all stored scores, choice, compaction, tree. On the GPU if there is one.
    """
    import torch
    from rich.console import Console

    from star_kv_sglang.tools.bench.budget_step import StepShape, append_csv, measure

    shape = StepShape(num_branches=branches, num_screens=screens, num_layers=layers, head_dim=head_dim)
    times = measure(shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"), num_steps=steps)
    Console().print(
        f"{branches} branches x {screens} screenshots, {layers} layers: {times.median_ms:.2f} ms a step, "
        f"{times.worst_ms:.2f} at worst of {times.num_steps}; {times.num_segments:.0f} segments cut and "
        f"{times.num_freed:.0f} slots freed in a step"
    )
    if csv is not None:
        append_csv(csv, shape, times)
