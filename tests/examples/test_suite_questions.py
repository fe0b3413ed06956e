"""The questions of `star-kv eval suite`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from star_kv_sglang.tools.eval.suite.questions import follow_up, load_questions, task_of
from star_kv_sglang.tools.rollout.trajectory import save_trajectories
from tinygui.suite_questions import FIRST_SEED, suite_trajectory
from tinygui.worlds import WORLDS


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_seed_always_asks_the_same_questions_that_the_suite_can_read(world: str, tmp_path: Path) -> None:
    made = [suite_trajectory(FIRST_SEED + i, WORLDS[world]) for i in range(4)]
    assert made[1] == suite_trajectory(FIRST_SEED + 1, WORLDS[world])
    save_trajectories(made, tmp_path / "q.json")
    assert load_questions(tmp_path / "q.json") == made


def test_every_task_is_asked_and_recalls_are_spread_over_the_ages() -> None:
    made = [suite_trajectory(FIRST_SEED + i) for i in range(30)]
    tasks = Counter(task_of(q).value for one in made for turn in one.turns for q in turn.questions)
    assert tasks["click"] == tasks["read"] == 75
    assert tasks["recall moved or gone"] >= 85 and tasks["recall still there"] >= 60
    last = [(one, question) for one in made for question in one.turns[-1].questions]
    assert {question.back for _, question in last} == {1, 2, 3, 4, 5}
    assert sum(follow_up(question, one.turns[-1].widgets) is not None for one, question in last) >= 30
