"""A client's mistake about its KV cache is the client's 400, on every API, and no line in the server's log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.rollout.server import serving
from tests.models.checkpoints import make_qwen2_5_vl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]

WRONG = [
    ({"kv_share": "no"}, ["kv_share 'no'", "true or false"]),
    ({"kv_budget": 7}, ["kv_budget 7 ", "(0, 1]"]),
    ({"kv_budget": "abc"}, ["kv_budget 'abc'", "(0, 1]"]),
    ({"kv_budgt": 0.1}, ["kv_budgt is not known", "did you mean kv_budget?"]),
]


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's output goes."""
    return tmp_path_factory.mktemp("server") / "server.log"


@pytest.fixture(scope="module")
def client(log_file: Path) -> Iterator[httpx.Client]:
    """A client of a server with a policy."""
    model = make_qwen2_5_vl(log_file.parent / "model")
    flags = ["--model-path", str(model), "--max-total-tokens", "2000", "--kv-policy", "star", "--skip-server-warmup"]
    with serving(flags, log_file) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def generate(client: httpx.Client, *, stream: bool = False, **body: Any) -> httpx.Response:
    sampling = {"temperature": 0, "max_new_tokens": 2, **body.pop("sampling_params", {})}
    return client.post("/generate", json={"text": "read x12", "sampling_params": sampling, "stream": stream, **body})


def chat(client: httpx.Client, *, stream: bool = False, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "read x12"}]
    given = {"model": "default", "temperature": 0, "max_tokens": 2, "messages": messages, "stream": stream}
    return client.post("/v1/chat/completions", json={**given, **body})


def complete(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "default", "max_tokens": 2, "prompt": "read x12", **body})


def not_refused(answers: list[httpx.Response], parts: list[str]) -> list[str]:
    """Answers that are no 400 with a JSON message that names all parts."""
    return [f"{a.status_code} {a.text}" for a in answers if a.status_code != 400 or not _message_has(a.json(), parts)]


def _message_has(body: dict[str, Any], parts: list[str]) -> bool:
    message = body.get("error", body.get("message"))
    return all(part in message for part in parts)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("custom", "parts"), WRONG, ids=["share", "budget", "budget_text", "unknown"])
def test_wrong_values_and_unknown_keys(
    client: httpx.Client, log_file: Path, custom: dict[str, Any], parts: list[str], stream: bool
) -> None:
    before = log_file.read_text(encoding="utf-8")
    answers = [
        generate(client, stream=stream, sampling_params={"custom_params": custom}),
        chat(client, stream=stream, custom_params=custom),
        complete(client, stream=stream, custom_params=custom),
    ]
    assert not_refused(answers, parts) == []
    new = log_file.read_text(encoding="utf-8").removeprefix(before)
    assert "400 Bad Request" in new
    assert not any(word in new for word in ("Error:", "Traceback", *custom))


def test_wrong_places_are_told_the_right_one(client: httpx.Client) -> None:
    right, wish = '"custom_params": {"kv_budget": ...}', {"kv_budget": 0.1}
    answers = [
        generate(client, **wish),
        generate(client, sampling_params=wish),
        generate(client, custom_params=wish),
        chat(client, **wish),
        chat(client, sampling_params=wish),
        chat(client, sampling_params={"custom_params": wish}),
        complete(client, **wish),
    ]
    assert not_refused(answers, [right]) == []


def test_right_values_go_through(client: httpx.Client) -> None:
    wishes = {"kv_share": True, "kv_budget": 0.5, "kv_trace": False, "of_another_plugin": "x"}
    before = client.get("/server_info").json()["internal_states"][0]["star_kv"]["num_pins"]
    for answer in (
        generate(client, sampling_params={"custom_params": wishes}),
        generate(client, stream=True, sampling_params={"custom_params": wishes}),
        chat(client, custom_params=wishes),
        chat(client, stream=True, custom_params=wishes),
        complete(client, custom_params=wishes),
        chat(client),
        generate(client),
    ):
        assert answer.status_code == 200, answer.text
    after = client.get("/server_info").json()["internal_states"][0]["star_kv"]["num_pins"]
    assert after - before == 5
    # SGLang's own refusals are as they were.
    assert generate(client, max_thinking_tokens=3).status_code == 400
    assert chat(client, messages=[]).status_code == 400
