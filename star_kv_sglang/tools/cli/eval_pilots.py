"""`star-kv eval pilots`: the two measurements behind the method, for a model and trajectories or recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.rollout.trajectory import load_trajectories
from star_kv_sglang.tools.tune.recordings import is_trajectory_file
from star_kv_sglang.tools.tune.threads import load_threads


def pilots(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The model's folder: any Qwen-VL.")],
    trajectories: Annotated[
        Path,
        typer.Option(help="A trajectory file, or what was recorded: conversations or requests, as of `star-kv tune`."),
    ],
    page: Annotated[Path, typer.Option(help="The Markdown page; numbers and plots go beside it.")] = Path(
        "docs/pilots.md"
    ),
    answers: Annotated[
        Path | None,
        typer.Option(help="A folder of `star-kv tune`, for recordings without answers: the full cache's stand there."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Only the first N trajectories.")] = None,
    observation_window: Annotated[int, typer.Option(min=1, help="How many of a prompt's last queries score.")] = 8,
) -> None:
    """Measure how much key heads' scores tell of the place, and how they drift along trajectories."""
    # Here and not above: they import torch, which other subcommands need not wait for.
    from star_kv_sglang.algorithm.params import ScorerParams
    from star_kv_sglang.tools.eval.pilots.capture import PilotModel, prompts_of
    from star_kv_sglang.tools.eval.pilots.page import measure, write_pilots
    from star_kv_sglang.tools.tune.watched import watched_prompts

    console = Console()
    if is_trajectory_file(trajectories):
        shown = [prompts_of(one) for one in load_trajectories(trajectories)[:count]]
    else:
        shown = watched_prompts(load_threads(trajectories, count), answers)
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
