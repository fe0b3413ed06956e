"""Every script wins a page that it is for, in the real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.browser.scripts import SCRIPTS
from star_kv_sglang.tools.rollout import RolloutSettings
from tests.browser.miniwob import play
from tests.rollout.fake_server import fake_server, reply

pytestmark = pytest.mark.slow


def test_every_script_wins_its_page(tmp_path: Path) -> None:
    tasks = tuple({script: task for task, script in SCRIPTS.items()}.values())
    settings = RolloutSettings(tasks=tasks, branches=1, seed=5, max_turns=40)
    with fake_server(reply("x4 y4")) as server:
        results = play(server.url, tmp_path, settings)
    assert {one.branch.task: one.end.reward for one in results if not one.success} == {}
    assert len(results) > 30 and all(one.end.measured["retries"] == 0 for one in results)
