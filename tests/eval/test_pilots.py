"""The pilots' measures against values by hand, and the page of known turns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from star_kv_sglang.algorithm.params import ScorerParams
from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.pilots.capture import PilotModel, SeenTurn, prompts_of
from star_kv_sglang.tools.eval.pilots.measures import (
    chance_information,
    drift,
    entropy,
    place_distance,
    rank_correlation,
    shares,
    spatial_information,
    value_distance,
)
from star_kv_sglang.tools.eval.pilots.page import measure, write_pilots
from star_kv_sglang.tools.tune.errors import RecordingError
from star_kv_sglang.tools.tune.records import FULL, FullTurn, TurnFile, turn_file
from star_kv_sglang.tools.tune.threads import load_threads
from star_kv_sglang.tools.tune.watched import watched_prompts
from tests.eval.suite_cases import trajectory
from tests.models.checkpoints import EXAMPLE_MODEL
from tests.tune.cases import assistant, data_url


def turn(values: list[float], rows: int, cols: int) -> SeenTurn:
    """One layer with one key head."""
    return SeenTurn(torch.tensor([[values]]), rows, cols)


def test_scores_that_follow_the_place_are_information_and_dealt_out_ones_less() -> None:
    """48 x 48 tokens, 16 to each place; the score is the column's third, so that place tells the value bin."""
    columns = torch.arange(48.0).expand(48, 48)
    banded = SeenTurn((columns + torch.linspace(0, 0.5, 48)[:, None]).reshape(1, 1, -1), 48, 48)
    known = float(spatial_information(banded))
    assert known > 2.1  # of log(16) = 2.77; bins of scores and of columns do not fall together
    assert float(chance_information(banded)) < 0.7


def test_one_token_for_each_place_looks_like_information_whatever_the_scores() -> None:
    scores = torch.randn(1, 2, 144, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(spatial_information(SeenTurn(scores, 12, 12)), torch.tensor(math.log(16)), atol=1e-5)


def test_entropy_of_even_and_of_single_scores() -> None:
    assert float(entropy(turn([2.0, 2.0, 2.0, 2.0], 2, 2))) == pytest.approx(1.0)
    assert float(entropy(turn([0.0, 3.0, 0.0, 0.0], 2, 2))) == pytest.approx(0.0)
    assert float(entropy(turn([1.0, 1.0, 0.0, 0.0], 2, 2))) == pytest.approx(0.5)
    assert shares(turn([0.0, 0.0], 1, 2)).tolist() == [[[0.5, 0.5]]]


def test_distance_of_values_does_not_see_places() -> None:
    one, same, even = (torch.tensor(x) for x in ([0.75, 0.25], [0.25, 0.75], [0.5, 0.5]))
    assert float(value_distance(one, same)) == 0
    assert float(value_distance(one, even)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], 0.0, id="same"),
        pytest.param([1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], 2 / 3, id="two_columns_of_three"),
        pytest.param([1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], 1 / 2, id="one_row_of_two"),
        pytest.param([1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], 2 / 3 + 1 / 2, id="both"),
    ],
)
def test_distance_over_the_screen(one: list[float], other: list[float], expected: float) -> None:
    found = place_distance(torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64), 2, 3)
    assert float(found) == pytest.approx(expected)


def test_rank_correlation_of_same_opposite_and_swapped() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(rank_correlation(scores, scores * 10 + 1)) == pytest.approx(1.0)
    assert float(rank_correlation(scores, -scores)) == pytest.approx(-1.0)
    # Spearman's formula: 1 - 6 * sum(d^2) / (n (n^2 - 1)) with d = 1, 1
    assert float(rank_correlation(scores, torch.tensor([2.0, 1.0, 3.0, 4.0]))) == pytest.approx(1 - 12 / 60)


def test_drift_needs_screenshots_of_one_grid() -> None:
    small, large = turn([1.0, 2.0], 1, 2), turn([1.0, 2.0, 3.0], 1, 3)
    assert drift([small, large], 1) is None
    found = drift([small, large, small], 2)
    assert found is not None and (found.lag, found.values, found.place, found.rank) == (2, 0, 0, pytest.approx(1.0))


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    made = [[SeenTurn(torch.rand(3, 2, 30, generator=generator), 5, 6) for _ in range(4)] for _ in range(2)]
    what = {"model": "tiny", "questions": "q.json", "observation_window": 8}
    page = tmp_path / "docs" / "pilots.md"
    page.parent.mkdir()
    written = write_pilots(measure(made), what, page, page.parent / "img")
    assert {path.suffix for path in written} == {".md", ".json", ".svg"} and all(path.exists() for path in written)
    assert "2\ntrajectories, 8 turns" in page.read_text() and "{" not in page.read_text()
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert len(numbers["information"]) == 3 and [one["lag"] for one in numbers["drifts"]] == [1, 2, 3]
    assert sum(numbers["top"][0]) == pytest.approx(1)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(EvalError, match="no turns to measure"):
        measure([])


@pytest.mark.slow
def test_a_model_is_watched_turn_by_turn() -> None:
    """The scores of the last query alone, unpooled and without boost, are a softmax: their sum is at most 1."""
    params = ScorerParams(observation_window=1, pool_width=1, boost=True, boost_alpha=0.0)
    model = PilotModel(EXAMPLE_MODEL, params, "cpu")
    turns = list(model.turns(prompts_of(trajectory(1))))
    assert [(one.rows, one.cols) for one in turns] == [(8, 8)] * 3
    assert all(one.scores.shape == (6, 4, 64) for one in turns)
    assert all(0 < float(one.scores.sum(dim=-1).amax()) <= 1 for one in turns)
    assert not torch.allclose(turns[0].scores, turns[1].scores)


def recorded(path: Path, *, answered: bool) -> Path:
    """The trajectory as a conversation, with or without its right answers."""
    messages: list[dict[str, Any]] = []
    for turn in trajectory(1).turns:
        question = turn.questions[0]
        image = {"type": "image_url", "image_url": {"url": data_url(turn.image_png)}}
        content = [{"type": "text", "text": turn.step}, image, {"type": "text", "text": question.text}]
        messages += [{"role": "user", "content": content}, *([assistant(question.answer)] if answered else [])]
    path.write_text(json.dumps(messages), encoding="utf-8")
    return path


def test_a_recorded_conversation_is_watched_as_the_labelled_one(tmp_path: Path) -> None:
    """All screenshots of this trajectory are the same: only the first turn brings a new one."""
    (prompts,) = watched_prompts(load_threads(recorded(tmp_path / "a.json", answered=True)), None)
    assert prompts == prompts_of(trajectory(1))[:1]


def test_answers_that_nobody_has_recorded_are_those_of_a_tuned_folder(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.json", answered=False)
    threads = load_threads(path)
    with pytest.raises(RecordingError, match="run star-kv tune on the same recordings, and give its folder with"):
        watched_prompts(threads, None)
    file = TurnFile(turn_file(tmp_path / "out", FULL), FullTurn)
    for turn, text in enumerate(["x2 y2", "red A", "x11 y11"]):
        file.add(FullTurn("a", turn, text, [], 100))
    assert watched_prompts(threads, tmp_path / "out") == [prompts_of(trajectory(1))[:1]]


@pytest.mark.slow
def test_the_command_takes_recordings(tmp_path: Path) -> None:
    conversation = recorded(tmp_path / "a.json", answered=True)
    page = tmp_path / "page" / "pilots.md"
    words = ["--model", str(EXAMPLE_MODEL), "--trajectories", str(conversation), "--page", str(page)]
    assert main(["eval", "pilots", *words]) == 0
    assert "1\ntrajectories, 1 turns" in page.read_text(encoding="utf-8")
