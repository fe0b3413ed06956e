"""Windows that clients keep, beside a policy that prunes what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.harness import TestEngine, running_engine
from tests.engine.loops import WindowClient
from tests.engine.masked_reference import MaskedReference

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

BUDGETS = {"share": {"kv_budget": 0.5}, "tree": {"kv_token_budget": 300}, "window": {"kv_image_window": 2}}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where prunes are written."""
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module", params=BUDGETS)
def budget(request: pytest.FixtureRequest) -> str:
    """What bounds the cache beside the clients' windows."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def engine(budget: str, checkpoint: Callable[[str], Path], trace: Path) -> Iterator[TestEngine]:
    """An engine with a policy, which recognises windows of those that ask for it."""
    with running_engine(
        checkpoint("qwen2_5_vl"),
        exact=True,
        kv_policy="star",
        kv_recognise_windows="asked",
        policy_config={"trace_dir": str(trace)},
        **BUDGETS[budget],
    ) as engine:
        yield engine


def test_what_a_client_leaves_out_goes_and_the_rest_keeps_its_budget(
    engine: TestEngine, checkpoint: Callable[[str], Path], trace: Path, budget: str
) -> None:
    client = WindowClient(engine, MaskedReference(checkpoint("qwen2_5_vl")), trace, f"client{budget}")
    for turn in range(6):
        client.see(turn)
        # A step of the token budget is not traced.
        answer = client.ask(client.loop.newest(3), is_traced=budget != "tree", kv_recognise_window=True)
        told = answer.meta["star_kv"][0]
        assert told.get("window", {}).get("left_out", 0) == max(0, turn - 2)
    assert engine.stats()["num_pruner_faults"] == 0
    # A request that does not ask is computed as it came.
    client.see(6)
    answer = engine.answer(client.prompt(client.loop.newest(3)), 4, extra_key=client.salt)
    assert "window" not in answer.meta["star_kv"][0]
    assert answer.cached < 20
