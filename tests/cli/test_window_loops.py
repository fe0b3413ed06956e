"""Agent loops that drop screenshots as their harness does run unchanged on a real server, and hit its cache."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.rollout.server import serving
from tests.architecture.imports import ROOT
from tinygui.trajectories import generate as generate_trajectory

MODEL = ROOT / "examples" / "tinygui" / "model"
KEPT = 5
NUM_TURNS = 9
PLACEHOLDER = "recall step1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    flags = ["--model-path", str(MODEL), "--kv-policy", "window", "--kv-recognise-windows", "all"]
    flags += ["--kv-window-placeholder", PLACEHOLDER, "--skip-server-warmup"]
    log_file: Path = tmp_path_factory.mktemp("server") / "server.log"
    with serving(flags, log_file) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def _image(png: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def dropped_messages(task: str, screens: Sequence[bytes], answers: Sequence[str]) -> list[dict[str, Any]]:
    """As UI-TARS's harness: the task, then a user's message for each screenshot and the model's answer to it; of the
    messages with screenshots only the newest five stay.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": task}]}]
    for number, screen in enumerate(screens):
        if number >= len(screens) - KEPT:
            messages.append({"role": "user", "content": [_image(screen)]})
        messages += [{"role": "assistant", "content": answer} for answer in answers[number : number + 1]]
    return messages


def replaced_messages(task: str, screens: Sequence[bytes], answers: Sequence[str]) -> list[dict[str, Any]]:
    """As a harness that puts a line of text in the place of an old screenshot."""
    messages: list[dict[str, Any]] = []
    for number, screen in enumerate(screens):
        old = {"type": "text", "text": PLACEHOLDER}
        shown = _image(screen) if number >= len(screens) - KEPT else old
        messages.append({"role": "user", "content": [shown, {"type": "text", "text": task}]})
        messages += [{"role": "assistant", "content": answer} for answer in answers[number : number + 1]]
    return messages


@pytest.mark.parametrize("build", [dropped_messages, replaced_messages])
def test_a_loop_hits_the_cache_from_turn_to_turn(client: httpx.Client, build: Any) -> None:
    screens = [turn.image_png for turn in generate_trajectory(93_000, num_turns=NUM_TURNS).turns]
    answers: list[str] = []
    computed, left_out = [], []
    for turn in range(NUM_TURNS):
        body = {
            "model": "default",
            "temperature": 0,
            "max_tokens": 6,
            "return_meta_info": True,
            "messages": build("click red A", screens[: turn + 1], answers),
        }
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        answers.append(choice["message"]["content"])
        meta = choice["meta_info"]
        assert meta["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
        computed.append(meta["prompt_tokens"] - meta["cached_tokens"])
        left_out.append(meta["star_kv"][0].get("window", {}).get("left_out", 0))
    assert left_out == [max(0, turn + 1 - KEPT) for turn in range(NUM_TURNS)]
    # A turn costs its screenshot and a few words, however long the history is.
    assert max(computed[1:]) <= computed[0] + 20
