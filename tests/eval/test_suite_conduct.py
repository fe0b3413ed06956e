"""Engines of a run: which are started, what they are told to do, and what becomes of one that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite import conduct
from star_kv_sglang.tools.eval.suite.conduct import Conductor, Plan, Tally, steps_of, worker_environment
from star_kv_sglang.tools.eval.suite.records import CellFile
from star_kv_sglang.tools.eval.suite.variants import Cell, Variant
from star_kv_sglang.tools.eval.suite.worker import Spec, Step
from tests.eval.suite_cases import trajectory, write_cells

STAR, RANDOM = Variant("star", "star"), Variant("random", "random", {"seed": 3})

WORKER = """
import os
import sys
from pathlib import Path
from star_kv_sglang.tools.eval.suite.records import CellFile
from star_kv_sglang.tools.eval.suite.worker import Spec
from tests.eval.suite_cases import answers
spec = Spec.from_json(Path(sys.argv[1]).read_text())
print("loading", flush=True)
for step in spec.steps:
    for number in step.trajectories:
        CellFile(Path(spec.folder), step.cell).add(number, answers([True] * 5))
        print('{"cell": "%s", "right": 5, "asked": 5}' % step.cell.name, flush=True)
if spec.variant.name == "random":
    sys.exit("no more memory")
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Two engines of one cell each, with a worker that answers everything and `random` fails at its end."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(conduct, "_WORKER", (sys.executable, str(script)))
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))

    def see_nothing(*args: Any, **kwargs: Any) -> Iterator[int]:
        yield 2

    monkeypatch.setattr(conduct, "see_all", see_nothing)
    write_cells(tmp_path / "suite", {})
    return Plan(
        model=tmp_path,
        questions=tmp_path / "q.json",
        folder=tmp_path / "suite",
        variants=(STAR, RANDOM),
        budgets=(0.2,),
        protocols=(Protocol.PERSISTENT,),
        first=1,
        jobs=2,
        at_a_time=4,
        traced=1,
        max_seconds=None,
    )


def run(plan: Plan) -> tuple[Tally, list[str]]:
    tally, notes = Tally(), list[str]()
    Conductor(plan, [trajectory(0), trajectory(1)], tally.add, notes.append).run()
    return tally, notes


def changed(plan: Plan, **fields: Any) -> Plan:
    return Plan(**{**{name: getattr(plan, name) for name in Plan.__dataclass_fields__}, **fields})


def test_every_cell_gets_the_first_trajectories_before_any_gets_more(plan: Plan) -> None:
    two = changed(plan, budgets=(0.2, 0.1))
    cells = [Cell("star", budget, Protocol.PERSISTENT) for budget in (0.2, 0.1)]
    assert steps_of(two, STAR, [5, 6, 7]) == (
        *(Step(cell, (5,)) for cell in cells),
        *(Step(cell, (6, 7)) for cell in cells),
    )


def test_a_spec_is_read_as_it_was_written() -> None:
    steps = (Step(Cell("random", 0.2, Protocol.STATELESS), (1, 2)),)
    spec = Spec("m", "q.json", "out", RANDOM, steps, 12.5, 4, frozenset({2, 1}))
    assert Spec.from_json(spec.to_json()) == spec


@pytest.mark.slow
def test_an_engine_that_fails_is_named_and_the_others_results_are_kept(plan: Plan) -> None:
    with pytest.raises(EvalError, match=r"(?s)the engine of random ended with status 1; .*no more memory"):
        run(plan)
    assert CellFile(plan.folder, Cell("star", 0.2, Protocol.PERSISTENT)).done == {0, 1}


@pytest.mark.slow
def test_what_is_complete_is_not_run_again(plan: Plan) -> None:
    tally, notes = run(changed(plan, variants=(STAR,)))
    assert (tally.right, tally.asked) == ({"star-20-persistent": 10}, {"star-20-persistent": 10})
    assert any(note.startswith("star: ") and note.endswith("status 0") for note in notes)
    assert run(changed(plan, variants=(STAR,)))[0].asked == {}


def test_engines_are_spread_over_the_gpus_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conduct.visible_gpus() == [] or conduct.device() == "cuda"
    monkeypatch.setattr(conduct, "device", lambda: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert conduct.visible_gpus() == ["2", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(conduct.torch.cuda, "device_count", lambda: 3)
    assert conduct.visible_gpus() == ["0", "1", "2"]


def test_no_engine_is_started_when_time_is_up(plan: Plan) -> None:
    late = changed(plan, max_seconds=-1.0)
    assert run(late)[0].asked == {}
    assert not list((plan.folder / "cells").iterdir())


def test_engines_share_the_processors_unless_told_otherwise() -> None:
    processors = len(os.sched_getaffinity(0))
    assert worker_environment({"A": "1"}, 1, None) == {"A": "1", "OMP_NUM_THREADS": str(processors)}
    assert worker_environment({}, 10 * processors, "3") == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "3"}
    assert worker_environment({"OMP_NUM_THREADS": "7"}, 2, None) == {"OMP_NUM_THREADS": "7"}
