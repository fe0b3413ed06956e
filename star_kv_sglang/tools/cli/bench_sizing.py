"""`star-kv bench sizing`: what a screenshot takes of the KV cache, and how many branches a GPU holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sizing(
    config: Annotated[Path | None, typer.Option(help="A model's config.json, instead of the known models.")] = None,
    params: Annotated[float, typer.Option(min=0, help="Its parameters in billions, for the weights.")] = 0,
    gpu_gib: Annotated[float, typer.Option("--gpu-gib", min=1, help="Memory of the GPU in GiB.")] = 80,
    static: Annotated[
        float, typer.Option(min=0.1, max=1, help="Share of it for weights and KV pool (mem_fraction_static).")
    ] = 0.72,
    screenshots: Annotated[int, typer.Option(min=1, help="Screenshots in a branch's history.")] = 10,
    shared: Annotated[int, typer.Option(min=0, help="How many of them all branches share.")] = 1,
    budget: Annotated[float, typer.Option(min=0.01, max=1, help="--kv-budget.")] = 0.2,
    markdown: Annotated[bool, typer.Option(help="Print a table in Markdown.")] = False,
) -> None:
    """Compute memory for models and screens. Nothing is run; K and V in bfloat16."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from star_kv_sglang.tools.bench.sizing import GIB, MODELS, Fleet, SizedModel, SizingError, sizing_rows
    from star_kv_sglang.tools.markdown import markdown_table

    if config is not None and not params:
        raise typer.BadParameter("--config needs --params, its parameters in billions: weights take memory too")
    if shared >= screenshots:
        raise typer.BadParameter(
            f"--shared {shared} must be below --screenshots {screenshots}: a branch has some of its own"
        )
    try:
        models = MODELS if config is None else (replace(SizedModel.of_config(config), num_params=params or None),)
    except SizingError as error:
        raise typer.BadParameter(str(error)) from None
    fleet = Fleet(gpu_gib * GIB, static, screenshots, shared, budget)
    heads, rows = sizing_rows(models, fleet)
    if markdown:
        typer.echo(markdown_table(heads, rows, numbers=True))
        return
    table = Table(title=f"{screenshots} screenshots a branch, {shared} shared, {gpu_gib:g} GiB")
    for column, head in enumerate(heads):
        table.add_column(head, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
