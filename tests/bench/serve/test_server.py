"""Which servers are compared, and with which flags."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.serve.context import Sizes
from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.bench.serve.runner import Plan
from star_kv_sglang.tools.bench.serve.server import Policy, parse_policies, policy_server
from star_kv_sglang.tools.rollout.errors import RolloutError


def test_stock_is_always_measured_and_first() -> None:
    assert parse_policies("star, full", "0.4,0.2") == [
        Policy("stock"),
        Policy("star", 0.4),
        Policy("star", 0.2),
        Policy("full"),
    ]


def test_budgets_may_be_named_one_by_one_so_that_the_most_wanted_policy_comes_first() -> None:
    assert parse_policies("star 0.2,full,stock,star", "0.2,0.1") == [
        Policy("stock"),
        Policy("star", 0.2),
        Policy("full"),
        Policy("star", 0.1),
    ]


def test_second_server_of_stock_is_another_policy_of_the_run() -> None:
    first, again, full = parse_policies("stock again,full", "0.2")
    assert (first.label, again.label, full.label) == ("stock", "stock again", "full")
    assert (again.name, again.arguments, again.plugins) == (first.name, first.arguments, first.plugins)


@pytest.mark.parametrize(
    ("names", "budgets", "message"),
    [
        pytest.param("snap", "0.2", "--policies snap", id="policy that does not exist"),
        pytest.param("full 0.2", "0.2", "--policies full 0.2", id="budget of a policy without one"),
        pytest.param("star", "much", "not a number", id="word for a budget"),
        pytest.param("star", "1.5", r"in \(0, 1\]", id="budget above one"),
    ],
)
def test_wrong_names(names: str, budgets: str, message: str) -> None:
    with pytest.raises(ServeBenchError, match=message):
        parse_policies(names, budgets)


def test_stock_has_no_plugin_and_no_flag_of_ours() -> None:
    stock = Policy("stock")
    assert stock.arguments == []
    assert "star_kv" not in stock.plugins
    assert (Policy("full").plugins, Policy("full").arguments) == ("star_kv", ["--kv-policy", "full"])


def test_brief_policies_decode_at_the_reference_point_only(tmp_path: Path) -> None:
    plan = Plan(
        policies=[],
        phases=[],
        sizes=Sizes(histories=(5, 10), batches=(1, 8, 32, 64)),
        screens=[],
        model_arguments=[],
        engine_arguments=[],
        pool=None,
        fixed_pool=150_000,
        work=tmp_path,
        port=None,
        start_timeout_s=1.0,
        brief=("star 0.4",),
    )
    brief, whole = plan.sizes_of(Policy("star", 0.4)), plan.sizes_of(Policy("star", 0.2))
    assert (brief.histories, brief.batches) == ((10,), (32,))
    assert whole is plan.sizes


def test_environment_of_a_server_is_gone_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "mine")
    before = dict(os.environ)
    with (
        pytest.raises(RolloutError),
        policy_server(
            Policy("stock"),
            ["--no-such-flag"],
            tmp_path / "log",
            port=None,
            timeout_s=0.0,
            on_wait=lambda seconds: None,
        ),
    ):
        pass
    assert dict(os.environ) == before


def test_the_users_flags_come_last_and_the_pool_is_fixed_for_branches_only(tmp_path: Path) -> None:
    plan = Plan(
        policies=[],
        phases=[],
        sizes=Sizes(batches=(1, 32)),
        screens=[],
        model_arguments=["--model-path", "m"],
        engine_arguments=["--mem-fraction-static", "0.8"],
        pool=None,
        fixed_pool=150_000,
        work=tmp_path,
        port=None,
        start_timeout_s=1.0,
    )
    main, fixed = plan.server_arguments(fixed_pool=False), plan.server_arguments(fixed_pool=True)
    assert main[-2:] == fixed[-2:] == ["--mem-fraction-static", "0.8"]
    assert "--max-total-tokens" not in main
    assert fixed[fixed.index("--max-total-tokens") + 1] == "150000"
    assert main[main.index("--cuda-graph-bs-decode") + 1 :][:2] == ["1", "32"]
