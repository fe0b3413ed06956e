"""`star-kv replay`: golden files through the production scorer."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where the replay runs: references on the CPU, kernels on a GPU."""

    cpu = "cpu"
    cuda = "cuda"


def replay(
    files: Annotated[list[Path], typer.Argument(help="Golden .npz files.", exists=True, dir_okay=False)],
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.cpu,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also print the error of every value.")] = False,
) -> None:
    """Replay golden files and compare kept positions and every intermediate value; exit 1 on a mismatch."""
    import torch

    from star_kv_sglang.algorithm.golden import replay_file
    from star_kv_sglang.triton_ops.dispatch import default_ops

    if device is Device.cuda and not torch.cuda.is_available():
        typer.echo("--device cuda: torch sees no CUDA device; use --device cpu or check the driver", err=True)
        raise typer.Exit(2)
    target = torch.device(device.value)
    failed = False
    for path in files:
        try:
            report = replay_file(path, target, default_ops(target))
        except ValueError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error
        prefix = f"{path.name}: " if len(files) > 1 else ""
        typer.echo(f"{prefix}kept_mismatch={report.kept_mismatch} max_rel_err={report.max_rel_err:.3g}")
        if verbose:
            for name, value in report.errors.items():
                typer.echo(f"  {name}: {value:.3g}")
        failed = failed or not report.ok
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(replay)
