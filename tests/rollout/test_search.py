"""Best of N and the tree search on a world where the right number of clicks wins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.rollout import (
    BranchResult,
    ChatClient,
    End,
    RolloutError,
    RolloutSettings,
    TreeSettings,
    best_of,
    ranked,
    tree_search,
)
from star_kv_sglang.tools.rollout.trace import without_measurements
from tests.rollout.fake_server import FakeServer, fake_server, reply
from tests.rollout.small_world import Clicker, Numbers, play

POLICY = {"kv_policy": "star", "enable_cache_report": True}


def search(server: FakeServer, out: Path, **changed: Any) -> list[BranchResult]:
    settings = RolloutSettings(tasks=("up",), max_turns=changed.pop("max_turns", 6))

    async def go() -> list[BranchResult]:
        async with ChatClient(server.url, timeout_s=5) as client:
            tree = TreeSettings(**{"fork_every": 1, "children": 3, "keep": 2, **changed})
            return await tree_search(client, Numbers(), Clicker(), settings, tree, out)

    return asyncio.run(go())


def test_best_of_n_is_the_best_branch_of_each_task(tmp_path: Path) -> None:
    with fake_server(reply("any")) as server:
        results = play(server.url, tmp_path, tasks=("up", "down"), branches=6)
    best = best_of(results)
    assert {task: one.success for task, one in best.items()} == {"up": True, "down": True}
    of_task = [one for one in results if one.branch.task == "up"]
    assert len({one.end.reward for one in of_task}) == 2, "some branches go past the number"
    shortest = min(len(one.rows) for one in of_task if one.success)
    assert len(best["up"].rows) == shortest


def test_a_value_of_ones_own_ranks(tmp_path: Path) -> None:
    with fake_server(reply("any")) as server:
        results = play(server.url, tmp_path, branches=6)
    longest = ranked(results, value=lambda one: float(len(one.rows)))[0]
    assert len(longest.rows) == max(len(one.rows) for one in results)


def test_a_tree_forks_the_best_and_gives_the_others_up(tmp_path: Path) -> None:
    with fake_server(reply("any"), info=POLICY) as server:
        results = search(server, tmp_path)
    names = [one.branch.name for one in results]
    assert names[:3] == ["0", "1", "2"]
    parents = {name.rpartition(".")[0] for name in names[3:9]}
    assert len(parents) == 2 and parents < {"0", "1", "2"}, "two of three are forked"
    assert ranked(results)[0].success
    by_name = {one.branch.name: one for one in results}
    for one in results[3:]:
        parent = by_name[one.branch.name.rpartition(".")[0]]
        assert one.branch.first_turn == len(parent.rows) and one.rows[: len(parent.rows)] == parent.rows
        assert parent.end.end is End.TURNS
    forked = [one for one in server.requests if one.get("custom_params") == {"kv_share": True}]
    assert len(forked) == len(server.requests), "with a fork at every turn, every prompt is shared"


def test_a_tree_that_was_stopped_goes_on_to_the_same(tmp_path: Path) -> None:
    def kept(out: Path) -> dict[str, list[dict[str, Any]]]:
        return {path.name: without_measurements(path) for path in (out / "traces").rglob("*.jsonl")}

    with fake_server(reply("any")) as server:
        whole = search(server, tmp_path / "whole")
        asked = len(server.requests)
        search(server, tmp_path / "stopped")
        gone = [path for path in (tmp_path / "stopped").rglob("*.jsonl") if path.stem.count(".") > 1]
        for path in gone:
            path.unlink()
        again = search(server, tmp_path / "stopped")
    assert gone and [one.branch for one in again] == [one.branch for one in whole]
    assert kept(tmp_path / "stopped") == kept(tmp_path / "whole")
    assert len(server.requests) < 3 * asked


@pytest.mark.parametrize("name", ["fork_every", "children", "keep"])
def test_a_tree_needs_a_shape(name: str) -> None:
    with pytest.raises(RolloutError, match=f"{name} must be at least 1"):
        TreeSettings(**{name: 0})
