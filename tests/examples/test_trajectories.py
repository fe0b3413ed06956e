"""Trajectories: seeds, branches, and the files that come with the tests."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from star_kv_sglang.tools.rollout.runner import count_shared_turns
from star_kv_sglang.tools.rollout.scoring import is_correct, parse_point, point_in_box
from star_kv_sglang.tools.rollout.trajectory import Trajectory, load_trajectories, save_trajectories
from tinygui.trajectories import branching, generate

SAMPLES = Path(__file__).parent / "data" / "samples" / "trajectories.json"


def fingerprint(trajectory: Trajectory) -> str:
    """Of pixels and ground truth; PNG compression may differ between machines."""
    digest = hashlib.sha256()
    for turn in trajectory.turns:
        digest.update(Image.open(io.BytesIO(turn.image_png)).tobytes())
        digest.update(repr((turn.step, turn.questions, turn.widgets)).encode())
    return digest.hexdigest()


def test_a_seed_is_pinned() -> None:
    assert fingerprint(generate(7)) == "383af3eb6167178bbe0a1c73345fb605b607d3e45e72b948e2927fb16ba387ee"


def test_screens_fit_the_model_without_resizing() -> None:
    for turn in generate(3).turns:
        assert Image.open(io.BytesIO(turn.image_png)).size == (448, 288)


@pytest.mark.parametrize("num_turns", [1, 2, 6, 12])
def test_steps_are_consecutive_and_within_the_vocabulary(num_turns: int) -> None:
    for seed in range(5):
        steps = [int(turn.step.removeprefix("step")) for turn in generate(seed, num_turns=num_turns).turns]
        assert steps == list(range(steps[0], steps[0] + num_turns))
        assert steps[0] >= 1 and steps[-1] <= 12


def test_branches_share_the_first_turn_and_nothing_else() -> None:
    branches = branching(11, num_branches=8, num_turns=6)
    assert count_shared_turns(branches) == 1
    assert [branch.id for branch in branches] == list(range(8))
    second_screens = {branch.turns[1].image_png for branch in branches}
    assert len(second_screens) == 8


def test_branches_continue_from_the_shared_screen() -> None:
    # A successor keeps about 60% of the widgets; a screen of its own would share next to none.
    root = set(branching(4)[0].turns[0].widgets)
    shared = [len(root & set(branch.turns[1].widgets)) / len(root) for branch in branching(4)]
    assert 0.4 <= sum(shared) / len(shared) <= 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_turns": 0}, "num_turns"),
        ({"num_turns": 13}, "there is no later step"),
        ({"questions_per_turn": 0}, "questions_per_turn"),
        ({"questions_per_turn": 9}, "questions_per_turn"),
    ],
    ids=["no-turn", "too-many-turns", "no-question", "too-many-questions"],
)
def test_counts_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(0, **arguments)  # type: ignore[arg-type]


def test_no_branch_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="num_branches"):
        branching(0, num_branches=0)


def test_the_samples_load_and_their_answers_are_right() -> None:
    trajectories = load_trajectories(SAMPLES)
    assert [len(trajectory.turns) for trajectory in trajectories] == [6] * 5
    for trajectory in trajectories:
        for index, turn in enumerate(trajectory.turns):
            for question in turn.questions:
                assert is_correct(question, question.answer), question
                target = trajectory.turns[index - question.back]
                assert question.box in [widget.box for widget in target.widgets]
                point = parse_point(question.answer)
                assert point is None or point_in_box(point, question.box)


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    made = branching(1, num_branches=2, num_turns=3)
    save_trajectories(made, tmp_path / "deep" / "trajectories.json")
    assert load_trajectories(tmp_path / "deep" / "trajectories.json") == made
