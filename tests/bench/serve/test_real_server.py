"""The decode phase on a real server: every branch is there, at its nominal length, when the window begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, write_checkpoint
from star_kv_sglang.tools.bench.serve.context import Sizes
from star_kv_sglang.tools.bench.serve.results import Machine, Results
from star_kv_sglang.tools.bench.serve.runner import Plan, Run
from star_kv_sglang.tools.bench.serve.screens import write_screens
from star_kv_sglang.tools.bench.serve.server import Policy


@pytest.mark.slow
@pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="the sizes are for a CPU; on a GPU the command itself is run")
def test_decode_phase(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", SHAPES["tiny"])
    results = Results(tmp_path / "serve.csv", Machine("now", "cpu", 0.0, "", "", "", "", "tiny"))
    plan = Plan(
        policies=[Policy("star", 0.2)],
        phases=["decode"],
        sizes=Sizes(histories=(2,), batches=(1, 3), window_s=0.5, max_seconds=90.0),
        screens=write_screens(tmp_path / "screens", (112, 84)),
        model_arguments=["--model-path", str(model), "--load-format", "dummy"],
        engine_arguments=[],
        pool=32_768,
        fixed_pool=32_768,
        work=tmp_path,
        port=None,
        start_timeout_s=300.0,
    )
    run = Run(plan=plan, results=results, say=lambda line: None, advance=lambda: None, problems=[])
    run.measure()
    assert run.problems == []
    steps = [figure for figure in results.figures if figure.metric == "ms_per_step"]
    assert [(figure.batch, figure.partial, figure.note) for figure in steps] == [(1, False, ""), (3, False, "")]
    assert all(figure.value is not None and figure.value > 0 for figure in steps)
    # 12 tokens a screenshot, 14 words around each, 5 that name the branch
    assert {figure.history for figure in steps} == {5 + 2 * (12 + 14)}
    log = (tmp_path / "main_star_0.2.log").read_text(encoding="utf-8")
    # the two branches that came second were prefilled before any of them decoded
    assert not re.search(r"Decode batch, #running-req: 2,", log)
