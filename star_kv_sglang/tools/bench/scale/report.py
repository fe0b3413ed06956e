"""What a simulation is worth: measured fleets, simulated; and how many servers a crowd of agents needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.bench.scale.costs import BUDGETS, Costs, measured_fleets
from star_kv_sglang.tools.bench.scale.simulation import Outcome, Plan, Simulation

CHECK_HEADS: Final = ("policy", "agents x turns", "", "measured", "simulated", "off by")


def check(folder: Path, gpu: str) -> list[list[str]]:
    """Rows of `CHECK_HEADS`: each measured fleet, and the same fleet simulated.

    Args:
        folder: Of the CSV files.
        gpu: Their suffix.

    Raises:
        ConfigError: Something was not measured.
    """
    rows = []
    for policy, fleet in measured_fleets(folder, gpu).items():
        plan = Plan(fleet.branches, fleet.turns, budget=BUDGETS[policy])
        outcome = Simulation(plan, Costs.measured(folder, gpu, policy)).run()
        for name in ("turns_per_s", "prefilled_tokens", "hit_rate", "ttft_s_p50"):
            seen, said = fleet.figures[name], float(getattr(outcome, name))
            size = f"{fleet.branches} x {fleet.turns}"
            rows.append([policy, size, name, f"{seen:,.4g}", f"{said:,.4g}", f"{said / seen - 1:+.0%}"])
    return rows


def most_branches(
    plan: Plan, costs: Costs, *, every_s: float, most_ttft_s: float, on_try: Callable[[int], None] = lambda number: None
) -> tuple[int, Outcome | None]:
    """How many agents one server serves, so that 95 % of their turns begin to be answered in time.

    Args:
        plan: Of one server; its branches and pauses are chosen here.
        costs: Of the server.
        every_s: Seconds that an agent takes between an answer and its next turn.
        most_ttft_s: What "in time" is.
        on_try: Told of each fleet that is simulated.

    Returns:
        The number, and what they get; 0 and None where one agent is too many.
    """

    def served(branches: int) -> Outcome | None:
        on_try(branches)
        fleet = replace(plan, branches=branches, servers=1, think_s=every_s, spread_s=every_s)
        outcome = Simulation(fleet, costs).run()
        return outcome if outcome.ttft_s_p95 <= most_ttft_s else None

    low, best, high = 0, None, 1
    while (outcome := served(high)) is not None:
        low, best, high = high, outcome, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        outcome = served(middle)
        low, high = (low, middle) if outcome is None else (middle, high)
        best = best if outcome is None else outcome
    return low, best
