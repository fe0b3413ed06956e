"""The shipped model answers in the world that is generated here, and on the samples made when it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.rollout.trajectory import Trajectory, load_trajectories
from tinygui.accuracy import Answerer, accuracy
from tinygui.trajectories import generate

SAMPLES = Path(__file__).parent / "data" / "samples" / "trajectories.json"


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer()


GENERATED = [generate(seed, questions_per_turn=3) for seed in (900_001, 900_002, 900_003, 900_004)]


@pytest.mark.slow
@pytest.mark.parametrize("trajectories", [GENERATED, load_trajectories(SAMPLES)[:3]], ids=["generator", "samples"])
def test_full_cache_accuracy(answerer: Answerer, trajectories: list[Trajectory]) -> None:
    table = accuracy(reply for trajectory in trajectories for reply in answerer.answer(trajectory))
    for kind in ("click", "recall", "read"):
        right, asked = table[kind]
        assert right / asked >= 0.95, (kind, table)
