"""What the CPU engine keeps is recorded, for a GPU engine to be compared with: the record is of today's policy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from star_kv_sglang import cpu_mode
from tests.engine.harness import running_engine
from tests.gpu.parity import CPU_REFERENCE, recorded_setup
from tests.gpu.scenario import kept_tokens, play
from tests.models.checkpoints import EXAMPLE_MODEL


@pytest.mark.slow
@pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="the record is the CPU's; tests/gpu/parity.py compares a GPU's")
def test_the_recorded_choices_are_those_of_this_engine(tmp_path: Path) -> None:
    setup = recorded_setup()
    with running_engine(EXAMPLE_MODEL, exact=setup.exact, **setup.arguments(tmp_path)) as engine:
        said = play(engine)
    with gzip.open(CPU_REFERENCE, "rt", encoding="utf-8") as file:
        recorded = json.load(file)
    assert [one.tokens for one in said] == [one["tokens"] for one in recorded["said"]]
    assert kept_tokens(tmp_path) == recorded["kept"], (
        "write the record anew: python tests/gpu/parity.py --reference tests/gpu/cpu_choices.json.gz"
    )
