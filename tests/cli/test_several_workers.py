"""Several processes that answer clients (`--tokenizer-worker-num`): each has the checks of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.rollout.server import serving
from tests.architecture.imports import ROOT

MODEL = ROOT / "examples" / "tinygui" / "model"
NUM_WORKERS = 2
NUM_ASKED = 8
"""Each with a connection of its own, which either worker may take."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


def test_every_worker_tells_its_clients_what_is_wrong(tmp_path: Path) -> None:
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--tokenizer-worker-num", str(NUM_WORKERS)]
    log = tmp_path / "server.log"
    with serving(flags, log) as url:

        def ask(**body: Any) -> httpx.Response:
            messages = [{"role": "user", "content": "read x12"}]
            given = {"model": "default", "temperature": 0, "max_tokens": 2, "messages": messages}
            return httpx.post(f"{url}/v1/chat/completions", json={**given, **body}, timeout=120)

        for _ in range(NUM_ASKED):
            misplaced = ask(kv_budget=0.1)
            assert misplaced.status_code == 400, misplaced.text
            assert "is read by nobody" in misplaced.json()["message"]
            wrong = ask(custom_params={"kv_budget": 7})
            assert (wrong.status_code, "(0, 1]" in wrong.text) == (400, True), wrong.text
            right = ask(custom_params={"kv_share": True})
            assert right.status_code == 200, right.text
        pins = httpx.get(f"{url}/server_info", timeout=30).json()["internal_states"][0]["star_kv"]["num_pins"]
        assert pins == NUM_ASKED
    assert log.read_text(encoding="utf-8").count("Start multi-tokenizer worker process") == NUM_WORKERS
