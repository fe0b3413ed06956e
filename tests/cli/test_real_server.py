"""`star-kv serve` without a GPU is SGLang's real server: text and screenshots through the OpenAI API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.server import serving
from tests.architecture.imports import ROOT
from tinygui.trajectories import generate

MODEL = ROOT / "examples" / "tinygui" / "model"
NUM_SCREENS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's output goes."""
    return tmp_path_factory.mktemp("server") / "server.log"


@pytest.fixture(scope="module")
def client(log_file: Path) -> Iterator[httpx.Client]:
    """A client of a server that was started with nothing but a model and a pool size."""
    with (
        serving(["--model-path", str(MODEL), "--max-total-tokens", "4096", "--enable-cache-report"], log_file) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def _chat(client: httpx.Client, content: list[dict[str, Any]]) -> dict[str, Any]:
    body = {
        "model": "default",
        "temperature": 0,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": content}],
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    completion: dict[str, Any] = answer.json()
    return completion


def _screen(png: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_it_says_that_cpu_mode_is_on_and_with_which_flags(client: httpx.Client, log_file: Path) -> None:
    assert log_file.read_text(encoding="utf-8").splitlines()[0] == (
        "No GPU found: CPU mode is on. --device cpu --attention-backend torch_native --sampling-backend pytorch "
        "--mm-attention-backend sdpa"
    )
    info = client.get("/server_info").json()
    assert (info["device"], info["attention_backend"]) == ("cpu", "torch_native")


def test_it_answers_text(client: httpx.Client) -> None:
    completion = _chat(client, [_text("read x12 y20 here")])
    assert completion["usage"]["completion_tokens"] > 0


def test_it_answers_questions_about_screenshots(client: httpx.Client) -> None:
    """The model answers every question of this kind from the image; without one it would have to guess."""
    wrong = []
    for seed in range(NUM_SCREENS):
        (turn,) = generate(90_000 + seed, num_turns=1, questions_per_turn=1).turns
        question = turn.questions[0]
        content = [_text(turn.step), _screen(turn.image_png), _text(question.text)]
        completion = _chat(client, content)
        assert completion["usage"]["prompt_tokens_details"]["image_tokens"] == 126
        text = completion["choices"][0]["message"]["content"]
        if not is_correct(question, text):
            wrong.append((question.text, text))
    assert wrong == []


def test_the_same_screenshot_is_found_in_the_radix_tree(client: httpx.Client) -> None:
    (turn,) = generate(91_000, num_turns=1, questions_per_turn=1).turns
    content = [_text(turn.step), _screen(turn.image_png), _text(turn.questions[0].text)]
    first, second = _chat(client, content), _chat(client, content)
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1
