"""`star-kv eval pilots`: the two measurements behind the method, for a model and a trajectory file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.rollout.trajectory import load_trajectories


def pilots(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The model's folder: any Qwen-VL.")],
    trajectories: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A trajectory file.")],
    page: Annotated[Path, typer.Option(help="The Markdown page; numbers and plots go beside it.")] = Path(
        "docs/pilots.md"
    ),
    count: Annotated[int | None, typer.Option(min=1, help="Only the first N trajectories.")] = None,
    observation_window: Annotated[int, typer.Option(min=1, help="How many of a prompt's last queries score.")] = 8,
) -> None:
    """Measure how much key heads' scores tell of the place, and how they drift along trajectories."""
    # Here and not above: they import torch, which other subcommands need not wait for.
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.tools.eval.pilots.capture import PilotModel
    from star_kv_sglang.tools.eval.pilots.page import measure, write_pilots

    console = Console()
    shown = load_trajectories(trajectories)[:count]
    params = ScorerParams(observation_window=observation_window)
    watched = PilotModel(model, params, "cuda" if is_gpu_present() else "cpu")
    captured = [list(watched.turns(one)) for one in track(shown, "turns", console=console)]
    what = {
        "model": "/".join(model.resolve().parts[-2:]),
        "questions": trajectories.name,
        "observation_window": observation_window,
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    for path in write_pilots(measure(captured), what, page, page.parent / "img"):
        console.print(str(path))
