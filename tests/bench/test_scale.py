"""`star-kv bench scale`: its arithmetic by hand, its costs from rows that are known, and the measured fleets."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.tools.bench.fleet.history import History
from star_kv_sglang.tools.bench.scale.costs import BUDGETS, SCREEN_TOKENS, TEXT_TOKENS, Costs
from star_kv_sglang.tools.bench.scale.report import check, most_branches
from star_kv_sglang.tools.bench.scale.simulation import Plan, Router, Simulation
from tests.architecture.imports import ROOT
from tests.star_kv import star_kv

COSTS = Costs(
    prefill_s=1e-4,
    step_s=0.01,
    row_s=0.001,
    live_token_s=0.0,
    new_image_s=0.1,
    image_again_s=0.01,
    pool=1_000_000,
)
TURN = SCREEN_TOKENS + TEXT_TOKENS
LAST = History.parse("last:2")


def test_a_lone_agent_by_hand() -> None:
    outcome = Simulation(Plan(1, 2, answer_tokens=3), COSTS).run()
    first = 0.1 + 0.01 + 1e-4 * TURN
    second = 0.11 + 0.01 + 1e-4 * TURN  # the answer lies in the tree already
    assert outcome.ttft_s_p50 == pytest.approx((first + second) / 2)
    assert outcome.prefilled_tokens == 2 * TURN
    assert outcome.hit_rate == pytest.approx((TURN + 3) / (3 * TURN + 3))
    assert 2 / outcome.turns_per_s == pytest.approx(first + second + 4 * 0.011)


def test_a_prompt_that_leaves_the_tree_is_computed_anew_unless_it_is_recognised() -> None:
    plan = Plan(1, 4, history=LAST, answer_tokens=1)
    assert [plan.new_tokens(turn, turn - 1 if turn else None) for turn in range(3)] == [TURN, TURN, 2 * TURN + 1]
    served = replace(plan, is_recognised=True)
    assert served.new_tokens(3, 2) == TURN
    assert served.live_tokens(3) == 4 * TEXT_TOKENS + 3 + 2 * SCREEN_TOKENS
    assert plan.live_tokens(3) == 2 * TEXT_TOKENS + 1 + 2 * SCREEN_TOKENS


def test_a_budget_and_a_window_leave_a_branch_less() -> None:
    plan = Plan(1, 4, budget=0.25, window=1, answer_tokens=1)
    assert plan.live_tokens(3) == 4 * TEXT_TOKENS + 3 + SCREEN_TOKENS / 4
    assert plan.new_tokens(3, 2) == TURN


def test_a_full_pool_forgets_what_was_used_longest_ago() -> None:
    plan = Plan(4, 4, think_s=5.0, spread_s=5.0)
    whole = Simulation(plan, COSTS).run()
    short = Simulation(plan, replace(COSTS, pool=3 * TURN)).run()
    assert whole.hit_rate > 0.5 > short.hit_rate
    assert short.prefilled_tokens > whole.prefilled_tokens


def test_two_servers_serve_twice_as_many_where_branches_stay() -> None:
    plan = Plan(24, 4)
    one = Simulation(plan, COSTS).run()
    two = Simulation(replace(plan, branches=48, servers=2), COSTS).run()
    assert two.turns_per_s == pytest.approx(2 * one.turns_per_s, rel=0.02)
    assert two.hit_rate == pytest.approx(one.hit_rate)
    astray = Simulation(replace(plan, branches=48, servers=2, router=Router.RANDOM), COSTS).run()
    assert astray.hit_rate < two.hit_rate
    assert astray.turns_per_s < two.turns_per_s
    in_turn = Simulation(replace(plan, branches=1, servers=3, router=Router.ROUND_ROBIN), COSTS).run()
    assert in_turn.hit_rate < Simulation(replace(plan, branches=1), COSTS).run().hit_rate


def test_the_same_plan_gives_the_same_outcome() -> None:
    plan = Plan(8, 3, servers=2, router=Router.RANDOM, spread_s=1.0, seed=5)
    assert Simulation(plan, COSTS).run() == Simulation(plan, COSTS).run()


def test_the_most_agents_are_those_with_whom_nobody_waits_too_long() -> None:
    plan = Plan(1, 3)
    most, outcome = most_branches(plan, COSTS, every_s=5.0, most_ttft_s=1.0)
    assert outcome is not None
    assert outcome.ttft_s_p95 <= 1.0
    more = replace(plan, branches=most + 1, think_s=5.0, spread_s=5.0)
    assert Simulation(more, COSTS).run().ttft_s_p95 > 1.0
    assert most_branches(plan, COSTS, every_s=5.0, most_ttft_s=0.1) == (0, None)


def _write(file: Path, rows: list[dict[str, object]]) -> None:
    rows = [{"model": "7b", **row} for row in rows]
    names = dict.fromkeys(name for row in rows for name in row)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, names)
        writer.writeheader()
        writer.writerows(rows)


def _rows_of(costs: Costs, folder: Path) -> None:
    """The rows of a GPU whose costs are known."""
    steps = [
        {
            "policy": "stock", "phase": "decode", "metric": "ms_per_step", "sglang": "0.5.23", "partial": "False",
            "history": history, "batch": batch, "value": 1e3 * costs.decode_step_s(batch, batch * history),
        }
        for history in (5 * TURN, 10 * TURN) for batch in (1, 32)
    ]  # fmt: skip
    _write(folder / "serve_g.csv", steps)
    turn = {
        "policy": "full",
        "part": "turn",
        "sglang": "0.5.23",
        "date": "1",
        "kernel_us": 1e6 * costs.prefill_s * TURN,
    }
    _write(folder / "turn_g.csv", [turn])
    again = 4 * costs.image_again_s + costs.step_s + costs.row_s
    fleet = {
        "policy": "stock",
        "phase": "fleet",
        "date": "1",
        "batch": 8,
        "note": "4 turns, append",
        "partial": "False",
    }
    figures = {"turns_per_s": 1.0, "cached_request_s_p50": again, "pool_slots": costs.pool}
    _write(folder / "fleet_g.csv", [{**fleet, "metric": name, "value": value} for name, value in figures.items()])
    alone = 5 * (costs.new_image_s + costs.prefill_s * SCREEN_TOKENS)
    row = {
        "metric": "first_tokens_s_p50",
        "batch": 1,
        "date": "1",
        "value": alone,
        "note": "5 screenshots of 1920x1080",
    }
    _write(folder / "group_g.csv", [row])


def test_costs_are_read_off_the_rows(tmp_path: Path) -> None:
    known = replace(COSTS, live_token_s=2e-8)
    _rows_of(known, tmp_path)
    found = Costs.measured(tmp_path, "g", "stock")
    for name in ("prefill_s", "step_s", "row_s", "live_token_s", "new_image_s", "image_again_s", "pool"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-6), name
    other = {"metric": "first_tokens_s_p50", "batch": 1, "date": "2", "value": 99.0, "note": "5 screenshots of 1x1"}
    _write(tmp_path / "group_g.csv", [other, {**other, "model": "tiny", "note": "5 screenshots of 1920x1080"}])
    with pytest.raises(ConfigError, match="no prompt was measured alone"):
        Costs.measured(tmp_path, "g", "stock")
    with pytest.raises(ConfigError, match=r"no fleet of star 0\.2"):
        Costs.measured(tmp_path, "g", "star 0.2")
    (tmp_path / "group_g.csv").unlink()
    with pytest.raises(ConfigError, match=r"group_g\.csv is not there: costs are measured on a GPU first"):
        Costs.measured(tmp_path, "g", "stock")


@pytest.mark.parametrize("policy", BUDGETS)
def test_the_costs_that_are_shipped_are_the_measured_ones(policy: str) -> None:
    """``python tests/bench/test_scale.py`` writes them anew."""
    assert Costs.shipped("h100", policy) == Costs.measured(ROOT / "benchmarks", "h100", policy)
    with pytest.raises(ConfigError, match="costs of stock on h300 are not known, those of stock on h100"):
        Costs.shipped("h300", "stock")


def test_what_the_tree_does_in_the_measured_fleets_is_simulated_exactly() -> None:
    """Tokens and hits follow from the prompts; seconds are as near as docs/scale.md says."""
    rows = check(ROOT / "benchmarks", "h100")
    assert {row[0] for row in rows} == {"stock", "star 0.2"}
    for policy, _, name, seen, said, _ in rows:
        off = float(said.replace(",", "")) / float(seen.replace(",", "")) - 1
        assert abs(off) < {"prefilled_tokens": 0.005, "hit_rate": 0.005, "turns_per_s": 0.3}.get(name, 0.5), (
            policy,
            name,
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "snapkv"], "choose among stock, star 0.2"),
        (["--router", "best"], "choose among same, round_robin, random"),
        (["--history", "all"], "give append, last:N or interval:N"),
        (["--budget", "2"], "a budget is in (0, 1]"),
        (["--policy", "stock", "--window", "5"], "stock keeps everything"),
        (["--policy", "stock", "--budget", "0.2"], "stock keeps everything"),
        (["--agents", "9", "--servers", "2"], "leave --servers and --router out"),
        (["--gpu", "tpu"], "costs of star 0.2 on tpu are not known"),
        (["--gpu", "tpu", "--folder", "benchmarks"], "serve_tpu.csv is not there"),
    ],
)
def test_wrong_input(words: list[str], said: str) -> None:
    answer = star_kv(["bench", "scale", *words])
    assert answer.exit_code != 0
    assert said in " ".join(answer.output.replace("│", " ").split())


def test_the_command_says_how_many_servers(tmp_path: Path) -> None:
    _rows_of(COSTS, tmp_path)
    words = ["--agents", "1000", "--think", "5", "--turns", "3", "--policy", "stock", "--ttft", "1"]
    answer = star_kv(["bench", "scale", *words, "--gpu", "g", "--folder", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "1,000 need" in answer.output
    assert "turns_per_s" in answer.output


if __name__ == "__main__":
    found = {policy: asdict(Costs.measured(ROOT / "benchmarks", "h100", policy)) for policy in BUDGETS}
    file = ROOT / "star_kv_sglang" / "tools" / "bench" / "scale" / "costs.json"
    file.write_text(json.dumps({"h100": found}, indent=1) + "\n", encoding="utf-8")
