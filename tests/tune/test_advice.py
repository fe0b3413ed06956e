"""The advice is the smallest budget within the bound, and the folder goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from star_kv_sglang.tools.tune.advice import Advice, advise
from star_kv_sglang.tools.tune.errors import TuneError
from star_kv_sglang.tools.tune.page import verdict
from star_kv_sglang.tools.tune.records import AGAIN, CellTurn, TurnFile, open_folder, read_turns, turn_file
from star_kv_sglang.tools.tune.replay import Cell
from tests.tune.cases import cell_turn

THREADS, TURNS = 20, 10


def advised(folder: Path, losses: dict[Cell, int], max_loss: float, kl: dict[str, float] | None = None) -> Advice:
    """The advice where so many of each cell's 200 turns have changed."""
    for cell, changed in losses.items():
        file = TurnFile(turn_file(folder, cell.name), CellTurn)
        for number in range(THREADS * TURNS):
            far = (kl or {}).get(cell.name, 0.0)
            file.add(cell_turn(f"t{number % THREADS}", number // THREADS, number >= changed, kl=far))
    return advise(folder, list(losses), max_loss)


def cells(policy: str, budgets: Sequence[float]) -> list[Cell]:
    return [Cell.of(policy, budget) for budget in budgets]


def test_the_smallest_budget_within_the_bound_is_advised(tmp_path: Path) -> None:
    star, other = cells("star", (0.4, 0.2, 0.1)), cells("snapkv", (0.4, 0.2, 0.1))
    losses = dict(zip([*star, *other], (0, 2, 30, 1, 9, 60), strict=True))
    advice = advised(tmp_path, losses, 0.02)
    assert advice.chosen is not None
    assert advice.chosen.cell == star[1]
    assert advice.flags("m", ["--tp", "1"]) == "star-kv serve --model-path m --kv-policy star --kv-budget 0.2 --tp 1"
    assert [one.cell.name for one in advice.outcomes] == [cell.name for cell in losses]
    assert list(advice.against) == ["snapkv-20"]
    assert (advice.against["snapkv-20"].num_lost, advice.against["snapkv-20"].num_gained) == (7, 0)
    assert advice.chosen.loss == pytest.approx(0.01)
    assert advice.chosen.ages[9].mean == 1.0
    assert not advice.is_sure
    assert "star at 20% changes 1.0% of the actions (95% interval 0.0 to 3.6)" in verdict(advice)
    assert "record more turns" in verdict(advice)


def test_threads_of_one_task_are_drawn_together(tmp_path: Path) -> None:
    """Ten branches of one rollout that change alike are one finding, not ten."""
    (only,) = cells("star", (0.2,))
    alone = advised(tmp_path, {only: 20}, 0.02).outcomes[0]
    tasks = {f"t{number}": f"task{number // 10}" for number in range(THREADS)}
    together = advise(tmp_path, [only], 0.02, tasks).outcomes[0]
    assert (alone.same.num_episodes, together.same.num_episodes) == (THREADS, 2)
    assert alone.same.mean == together.same.mean
    assert together.held.num_episodes == 2
    assert advise(tmp_path, [only], 1.0, tasks).is_sure
    assert not advise(tmp_path, [only], 1.0, dict.fromkeys(tasks, "task")).is_sure, "other tasks may be otherwise"


def test_a_budget_counts_only_where_all_larger_ones_of_its_policy_are_within_the_bound(tmp_path: Path) -> None:
    lucky = cells("random", (0.4, 0.2, 0.1))
    advice = advised(tmp_path, dict(zip(lucky, (0, 50, 0), strict=True)), 0.02)
    assert advice.chosen is not None
    assert advice.chosen.cell == lucky[0]


def test_a_loss_that_is_the_bound_is_within_it(tmp_path: Path) -> None:
    """1 - 0.98 is a little more than 0.02 in binary."""
    (only,) = cells("star", (0.2,))
    advice = advised(tmp_path, {only: 4}, 0.02)
    assert advice.chosen is not None and advice.chosen.loss == 0.02


@pytest.mark.parametrize(("max_loss", "sure"), [(0.01, False), (0.02, True)])
def test_where_nothing_changed_so_many_turns_are_sure_of_so_much(tmp_path: Path, max_loss: float, sure: bool) -> None:
    """Of 200 turns without a change at most 1.9% may be ones that change, whatever drawing threads again shows."""
    (only,) = cells("star", (0.2,))
    assert advised(tmp_path, {only: 0}, max_loss).is_sure is sure


def test_a_policy_is_compared_with_what_the_full_cache_changes_by_itself(tmp_path: Path) -> None:
    again = Cell("star", 1.0, AGAIN)
    (only,) = cells("star", (0.2,))
    advice = advised(tmp_path, {again: 10, only: 10}, 0.1)
    assert advice.outcomes[0].test.p_value == 1.0
    assert "The full cache changes 5.0% by itself." in verdict(advice)


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path, {"seed": 0}), pytest.raises(TuneError, match=r"is in use: another run \(process \d+\)"):
        open_folder(tmp_path, {"seed": 0})
    open_folder(tmp_path, {"seed": 0}).close()


def test_of_equal_losses_the_one_nearest_to_the_full_cache_is_advised(tmp_path: Path) -> None:
    one, other = Cell.of("star", 0.1), Cell.of("snapkv", 0.1)
    advice = advised(tmp_path, {one: 1, other: 1}, 0.02, {"star-10": 0.3, "snapkv-10": 0.2})
    assert advice.chosen is not None
    assert advice.chosen.cell == other


def test_nothing_within_the_bound_keeps_the_full_cache(tmp_path: Path) -> None:
    advice = advised(tmp_path, {Cell.of("star", 0.1): 20}, 0.02)
    assert advice.chosen is None
    assert advice.flags("m", []) == "star-kv serve --model-path m --kv-policy full"
    assert "star-10 changes 10.0%. Keep the full cache" in verdict(advice)


def test_the_control_is_no_rival_and_unscored_turns_do_not_count(tmp_path: Path) -> None:
    again = Cell("star", 1.0, AGAIN)
    file = TurnFile(turn_file(tmp_path, "star-10"), CellTurn)
    file.add(cell_turn("a", 0, ago=0))
    file.add(cell_turn("a", 1, False, scored=False, ago=1))
    TurnFile(turn_file(tmp_path, AGAIN), CellTurn).add(cell_turn("a", 0, ago=0))
    advice = advise(tmp_path, [again, Cell.of("star", 0.1)], 0.02)
    assert advice.control is not None
    assert [one.cell.name for one in advice.outcomes] == ["star-10"]
    assert advice.outcomes[0].same.num_samples == 1
    assert advice.knows_ages
    assert list(advice.outcomes[0].ages) == [0]


def test_a_line_that_was_cut_off_is_replayed_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = turn_file(tmp_path, "star-10")
    file = TurnFile(path, CellTurn)
    file.add(cell_turn("a", 0))
    with path.open("a", encoding="utf-8") as cut:
        cut.write('{"thread": "a", "tu')
    again = TurnFile(path, CellTurn)
    assert list(again.rows) == [("a", 0)]
    assert again.lacks("a", 2)
    again.add(cell_turn("a", 1))
    assert [row.turn for row in read_turns(path, CellTurn)] == [0, 1]
    path.write_text("[1]\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(TuneError, match=r"line 1 is damaged .*; remove the line to go on"):
        read_turns(path, CellTurn)


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        open_folder(tmp_path, {"model": "a", "agent": "small"}).close()
    with pytest.raises(TuneError, match=r"holds another run:\n  - agent: 'small' there, 'words' now\nGive another"):
        open_folder(tmp_path, {"model": "a", "agent": "words"})
    (tmp_path / "tune.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(TuneError, match="is damaged"):
        open_folder(tmp_path, {})
