"""`star-kv bench scale`: a fleet that nobody has at hand, simulated with the costs that were measured."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def scale(
    branches: Annotated[int, typer.Option(min=1, help="Agents at the same time.")] = 24,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 8,
    policy: Annotated[str, typer.Option(help="Whose costs: stock or 'star 0.2'.")] = "star 0.2",
    history: Annotated[str, typer.Option(help="Screenshots sent again: append, last:N or interval:N.")] = "append",
    budget: Annotated[float | None, typer.Option(help="Share of a screenshot that stays; the policy's own.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="--kv-image-window.")] = None,
    recognised: Annotated[
        bool, typer.Option("--recognised", help="A prompt that leaves screenshots out is served from its branch.")
    ] = False,
    think: Annotated[float, typer.Option(min=0, help="Seconds between an answer and the next turn.")] = 0.0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    pool: Annotated[int | None, typer.Option(min=1, help="Slots of a server's pool; the measured one's.")] = None,
    servers: Annotated[int, typer.Option(min=1, help="Servers of one GPU each.")] = 1,
    router: Annotated[str, typer.Option(help="same, round_robin or random.")] = "same",
    agents: Annotated[
        int | None, typer.Option(min=1, help="How many servers do so many agents need? One server is filled up.")
    ] = None,
    ttft: Annotated[float, typer.Option(min=0.01, help="With --agents: 95 % of turns begin within so many s.")] = 3.0,
    check: Annotated[bool, typer.Option("--check", help="Simulate the measured fleets, and compare.")] = False,
    gpu: Annotated[str, typer.Option(help="Whose costs.")] = "h100",
    folder: Annotated[
        Path | None, typer.Option(help="Take costs from the rows of this folder, *_GPU.csv; --check: benchmarks.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of --check in Markdown.")] = False,
) -> None:
    """Simulate agents, a router and servers, event by event. Nothing is run; costs are of a 7B model, 1920x1080."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from star_kv_sglang.tools.bench.fleet.history import History
    from star_kv_sglang.tools.bench.scale.costs import BUDGETS, Costs
    from star_kv_sglang.tools.bench.scale.report import CHECK_HEADS, most_branches
    from star_kv_sglang.tools.bench.scale.report import check as check_rows
    from star_kv_sglang.tools.bench.scale.simulation import Plan, Router, Simulation
    from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
    from star_kv_sglang.tools.bench.serve.server import STOCK
    from star_kv_sglang.tools.markdown import markdown_table

    console = Console()
    if policy not in BUDGETS:
        raise typer.BadParameter(f"{policy!r}: choose among {', '.join(BUDGETS)}", param_hint="--policy")
    if router not in [one.value for one in Router]:
        raise typer.BadParameter(
            f"{router!r}: choose among {', '.join(one.value for one in Router)}", param_hint="--router"
        )
    if budget is not None and not 0 < budget <= 1:
        raise typer.BadParameter(f"{budget}: a budget is in (0, 1]", param_hint="--budget")
    if policy == STOCK and (budget not in (None, 1) or window is not None or recognised):
        raise typer.BadParameter("stock keeps everything: leave --budget, --window and --recognised out")
    try:
        shown = History.parse(history)
    except ServeBenchError as error:
        raise typer.BadParameter(str(error)) from None
    if check:
        rows = check_rows(folder or Path("benchmarks"), gpu)
        if markdown:
            typer.echo(markdown_table(list(CHECK_HEADS), rows))
            return
        table = Table(*CHECK_HEADS)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    if agents is not None and (servers != 1 or Router(router) is not Router.SAME):
        raise typer.BadParameter("one server is filled up: leave --servers and --router out", param_hint="--agents")
    costs = Costs.shipped(gpu, policy) if folder is None else Costs.measured(folder, gpu, policy)
    costs = costs if pool is None else replace(costs, pool=pool)
    plan = Plan(
        branches=branches,
        turns=turns,
        history=shown,
        budget=BUDGETS[policy] if budget is None else budget,
        window=window,
        is_recognised=recognised,
        answer_tokens=answer_tokens,
        think_s=think,
        servers=servers,
        router=Router(router),
    )
    if agents is None:
        outcome = Simulation(plan, costs).run()
    else:
        with console.status("") as status:
            most, found = most_branches(
                plan,
                costs,
                every_s=think,
                most_ttft_s=ttft,
                on_try=lambda number: status.update(f"{number} agents at one server"),
            )
        if found is None:
            console.print(f"One agent waits longer than {ttft:g} s for a first token: no number of servers helps.")
            raise typer.Exit(1)
        outcome = found
        console.print(f"One server serves {most:,} agents; {agents:,} need {math.ceil(agents / most):,} servers.")
    table = Table("figure", "simulated")
    for name, value in asdict(outcome).items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
