"""`star-kv bench turn`: what the policy adds to one turn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def turn(
    cached_screens: Annotated[int, typer.Option(help="1920x1080 screenshots in the history.")] = 4,
    policy: Annotated[str, typer.Option(help="The KV policy.")] = "star",
    budget: Annotated[float, typer.Option(help="The policy's budget.")] = 0.2,
    csv: Annotated[Path | None, typer.Option(help="Append the stages to this CSV.")] = None,
) -> None:
    """Profile the prefill of one turn of a 7B-shaped model on this GPU: GPU time of every stage of the policy."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from star_kv_sglang.bench.turn import append_csv, profile_turn

    console = Console(width=120)
    if not torch.cuda.is_available():
        console.print("star-kv bench turn needs an NVIDIA GPU; torch sees none")
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        profile = profile_turn(Path(folder), policy=policy, num_cached_screens=cached_screens, budget=budget)
    table = Table(title=f"One turn, {policy}: {profile.kernel_us / 1e3:.1f} ms of kernels")
    for column in ("stage", "ranges", "GPU us", "elapsed us", "share of the rest"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in profile.stages:
        table.add_row(
            stage.name, str(stage.num_ranges), f"{stage.gpu_us:.1f}", f"{stage.elapsed_us:.1f}", f"{stage.share:.3%}"
        )
    table.add_section()
    gpu_us, elapsed_us = (sum(getattr(s, name) for s in profile.stages) for name in ("gpu_us", "elapsed_us"))
    table.add_row("all stages", "", f"{gpu_us:.1f}", f"{elapsed_us:.1f}", f"{profile.policy_share:.3%}")
    console.print(table)
    if csv is not None:
        append_csv(csv, policy, profile)


if __name__ == "__main__":
    typer.run(turn)
