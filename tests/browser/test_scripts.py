"""Every script wins a page that it is for, in the real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.browser.scripts import SCRIPTS
from star_kv_sglang.tools.rollout import RolloutSettings
from tests.browser.miniwob import play
from tests.rollout.fake_server import fake_server, reply

pytestmark = pytest.mark.slow

OF_EVERY_RUN = (
    *("click-button-sequence", "click-widget", "click-dialog-2", "click-tab-2-hard", "click-collapsible-2"),
    *("odd-or-even", "click-checkboxes", "click-option", "choose-list", "navigate-tree"),
    *("login-user-popup", "focus-text-2", "enter-date", "enter-time", "simple-algebra", "copy-paste"),
)
"""Those whose pages are made of different things; the others are played by night."""


@pytest.mark.parametrize(
    "tasks", [OF_EVERY_RUN, pytest.param(tuple(SCRIPTS), marks=pytest.mark.nightly)], ids=["some", "all"]
)
def test_scripts_win_their_pages(tasks: tuple[str, ...], tmp_path: Path) -> None:
    # A machine that is busy with other tests is no fault of a page.
    patience = {"environment_timeout_s": 240.0, "opening_timeout_s": 240.0}
    settings = RolloutSettings(tasks=tasks, branches=1, seed=5, max_turns=40, **patience)
    with fake_server(reply("x4 y4")) as server:
        results = play(server.url, tmp_path, settings)
    assert {one.branch.task: one.end.reward for one in results if not one.success} == {}
    assert [one.branch.task for one in results if one.end.measured["retries"]] == []
