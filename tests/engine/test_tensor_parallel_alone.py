"""Two ranks keep what one rank keeps, to the token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.engine.harness import running_engine
from tests.engine.machine import environment
from tests.engine.masked_reference import read_drops
from tests.engine.test_tensor_parallel import ON_A_CPU, POLICY, RANKS, SETUP, play

pytestmark = [pytest.mark.slow, pytest.mark.nightly, ON_A_CPU]


@pytest.mark.parametrize("policy", ["star", "star-paper", "h2o", "vlcache"])
def test_two_ranks_keep_what_one_keeps(checkpoint: Callable[[str], Path], tmp_path: Path, policy: str) -> None:
    kept, texts = [], []
    for size in (1, 2):
        trace = tmp_path / str(size)
        config = {"trace_dir": str(trace), **(POLICY if policy == "star" else {})}
        ranks = environment(RANKS) if size > 1 else nullcontext()
        with (
            ranks,
            running_engine(
                checkpoint("qwen2_5_vl"), kv_policy=policy, tp_size=size, policy_config=config, **SETUP
            ) as engine,
        ):
            texts.append([answer.token_ids for _, answer in play(engine)])
        kept.append([(drop.rid, drop.frame, drop.kept.tolist()) for drop in read_drops(trace)])
    assert texts[0] == texts[1]
    assert kept[0] == kept[1] and kept[0]
