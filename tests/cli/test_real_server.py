"""`star-kv serve` without a GPU is SGLang's real server: one of them, from its start to a client's mistakes.

What needs no server, such as wrong flags, is in `test_serve`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode.quiet import LOG_LINES, WARNINGS
from star_kv_sglang.rl import read_kept
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.server import serving
from tests.architecture.imports import ROOT
from tinygui.trajectories import generate as generate_trajectory

MODEL = ROOT / "examples" / "tinygui" / "model"
NUM_SCREENS = 6

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
    """A client of a server that was started with nothing but a model, a policy and a folder for traces."""
    traced = json.dumps({"trace_dir": str(log_file.parent / "traces")})
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--kv-policy-config", traced]
    with serving(flags, log_file) as url, httpx.Client(base_url=url, timeout=120) as client:
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
        "--mm-attention-backend sdpa --max-total-tokens 32768"
    )
    info = client.get("/server_info").json()
    assert (info["device"], info["attention_backend"]) == ("cpu", "torch_native")


def test_it_says_where_it_is_and_what_it_runs_once_it_is_ready(client: httpx.Client, log_file: Path) -> None:
    deadline = time.monotonic() + 30
    while "Ready at" not in log_file.read_text(encoding="utf-8") and time.monotonic() < deadline:
        time.sleep(0.2)
    lines = log_file.read_text(encoding="utf-8").splitlines()
    first = lines.index(f"Ready at {client.base_url}/v1 (OpenAI's API)")
    assert lines[first + 1 : first + 4] == [
        f"  model   {MODEL}",
        "  policy  star, budget 0.2 of a branch's private screenshot tokens",
        "  pool    32,768 tokens",
    ]


def test_the_warm_up_left_no_trace(client: httpx.Client, log_file: Path) -> None:
    """Its screenshot is SGLang's: nobody could draw on it. The first trace is of the first client."""
    assert "POST /v1/chat/completions" in log_file.read_text(encoding="utf-8")
    assert list((log_file.parent / "traces").iterdir()) == []


def test_what_sglang_repeats_on_a_cpu_is_left_out(client: httpx.Client, log_file: Path) -> None:
    assert client.get("/health").status_code == 200
    log = log_file.read_text(encoding="utf-8")
    named = [*WARNINGS, *(line for lines in LOG_LINES.values() for line in lines), "Traceback", "FFmpeg", "torchcodec"]
    assert [words for words in named if words in log] == []


def _readme_request() -> tuple[dict[str, Any], str]:
    """The body of the request in the README, and the answer that it shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"curl [^\n]* -d '(?P<body>.*?\]\}\]\}.*?)'\n```\n\n```\n(?P<answer>.*?)\n```", text, re.DOTALL)
    assert match is not None
    found = re.search(r"'\$\(base64 -w0 (?P<file>[\w/.]+)\)'", match["body"])
    assert found is not None
    picture = base64.b64encode((ROOT / found["file"]).read_bytes()).decode()
    body: dict[str, Any] = json.loads(match["body"].replace(found[0], picture))
    return body, match["answer"]


def test_the_request_in_the_readme_has_the_answer_that_it_shows(client: httpx.Client) -> None:
    """The first request to this server, so that it shares with SGLang's warm-up what it shares in the README."""
    body, shown = _readme_request()
    answer = client.post("/v1/chat/completions", json=body).json()
    (choice,) = answer["choices"]
    (kept,) = choice["meta_info"]["star_kv"]
    assert kept["live"] + kept["pruned"] == answer["usage"]["prompt_tokens"]
    assert f'"content": {json.dumps(choice["message"]["content"])}' in shown
    assert json.dumps(kept) in shown


def test_it_answers_text(client: httpx.Client) -> None:
    completion = _chat(client, [_text("read x12 y20 here")])
    assert completion["usage"]["completion_tokens"] > 0


def test_it_answers_questions_about_screenshots(client: httpx.Client) -> None:
    """The model answers every question of this kind from the image; without one it would have to guess."""
    wrong = []
    for seed in range(NUM_SCREENS):
        (turn,) = generate_trajectory(90_000 + seed, num_turns=1, questions_per_turn=1).turns
        question = turn.questions[0]
        content = [_text(turn.step), _screen(turn.image_png), _text(question.text)]
        completion = _chat(client, content)
        assert completion["usage"]["prompt_tokens_details"]["image_tokens"] == 126
        text = completion["choices"][0]["message"]["content"]
        if not is_correct(question, text):
            wrong.append((question.text, text))
    assert wrong == []


def test_the_same_screenshot_is_found_in_the_radix_tree(client: httpx.Client) -> None:
    (turn,) = generate_trajectory(91_000, num_turns=1, questions_per_turn=1).turns
    content = [_text(turn.step), _screen(turn.image_png), _text(turn.questions[0].text)]
    first, second = _chat(client, content), _chat(client, content)
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1


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
    error = body.get("error", body.get("message"))
    message = error["message"] if isinstance(error, dict) else error
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


def respond(client: httpx.Client, **body: Any) -> httpx.Response:
    given = {"model": str(MODEL), "input": "read x12", "max_output_tokens": 2, "store": False}
    return client.post("/v1/responses", json={**given, **body})


def send_message(client: httpx.Client, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "read x12"}]
    return client.post("/v1/messages", json={"model": "default", "max_tokens": 2, "messages": messages, **body})


def ollama_chat(client: httpx.Client, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "read x12"}]
    given = {"model": "default", "messages": messages, "options": {"num_predict": 2}, "stream": False}
    return client.post("/api/chat", json={**given, **body})


def ollama_generate(client: httpx.Client, **body: Any) -> httpx.Response:
    given = {"model": "default", "prompt": "read x12", "options": {"num_predict": 2}, "stream": False}
    return client.post("/api/generate", json={**given, **body})


@pytest.mark.parametrize(
    ("ask", "endpoint"),
    [
        (respond, "/v1/responses"),
        (send_message, "/v1/messages"),
        (ollama_chat, "/api/chat"),
        (ollama_generate, "/api/generate"),
    ],
    ids=["responses", "messages", "ollama_chat", "ollama_generate"],
)
def test_endpoints_that_carry_no_wishes_say_so(
    client: httpx.Client, ask: Callable[..., httpx.Response], endpoint: str
) -> None:
    wish = {"kv_budget": 0.1}
    places: list[dict[str, Any]] = [
        wish,
        {"custom_params": wish},
        {"sampling_params": wish},
        {"sampling_params": {"custom_params": wish}},
        {"options": wish},
    ]
    right = '"custom_params": {"kv_budget": ...} at the top level of the body of /v1/chat/completions'
    for stream in (False, True):
        answers = [ask(client, stream=stream, **body) for body in places]
        assert not_refused(answers, ["is read by nobody", right, endpoint]) == []
        assert not_refused([ask(client, stream=stream, kv_budgt=0.1)], ["did you mean kv_budget?"]) == []
    answer = ask(client, custom_params={"of_another_plugin": "x"})
    assert answer.status_code == 200, answer.text


def test_what_was_kept_comes_with_the_answer(client: httpx.Client) -> None:
    (shown,) = generate_trajectory(92_000, num_turns=1, questions_per_turn=1).turns
    content = [_text(shown.step), _screen(shown.image_png), _text(shown.questions[0].text)]
    asks: dict[str, Any] = {"custom_params": {"kv_return_kept": True}}
    given = {"messages": [{"role": "user", "content": content}], "max_tokens": 3, **asks}
    (choice,) = chat(client, return_meta_info=True, **given).json()["choices"]
    record = read_kept(choice["meta_info"])
    assert record.prunes and record.length == choice["meta_info"]["prompt_tokens"] + 3
    streamed = generate(client, stream=True, sampling_params=asks).text
    chunks = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: {")]
    assert read_kept(json.loads(chunks[-1])["meta_info"]).prunes == ()
    wrong = {"kv_return_kept": "yes"}
    for stream in (False, True):
        refused = [
            generate(client, stream=stream, sampling_params={"custom_params": wrong}),
            chat(client, stream=stream, custom_params=wrong),
            complete(client, stream=stream, custom_params=wrong),
        ]
        assert not_refused(refused, ["kv_return_kept 'yes'", "true or false"]) == []
    # No place in the answer: a completion has none, nor has a chat that does not ask for it, or is streamed.
    refused = [chat(client, **asks), chat(client, stream=True, **asks), complete(client, **asks)]
    assert not_refused(refused, ['"return_meta_info": true', "/generate"]) == []
    assert not_refused([chat(client, stream=True, return_meta_info=True, **asks)], ["stream"]) == []


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


def _processes(port: int) -> list[psutil.Process]:
    """All of the server at this port: what answers clients, then the others."""
    children = filter(_is_alive, psutil.Process().children())
    (server,) = [one for one in children if str(port) in one.cmdline()]
    return [server, *filter(_is_alive, server.children(recursive=True))]


def _is_alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def _files(pid: str) -> Iterator[tuple[str, int]]:
    """Name and inode of what a process holds by a descriptor or maps."""
    for fd in Path("/proc", pid, "fd").iterdir():
        yield str(fd.readlink()), fd.stat().st_ino
    for line in Path("/proc", pid, "maps").read_text(encoding="utf-8").splitlines():
        _, _, _, _, inode, *name = line.split(maxsplit=5)
        yield "".join(name), int(inode)


def _holders() -> dict[int, set[int]]:
    """For each segment of features on this machine the processes that hold it."""
    holders: dict[int, set[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended meanwhile, or is not ours
            for name, inode in _files(pid):
                if "star-kv-feature" in name:
                    holders.setdefault(inode, set()).add(int(pid))
    return holders


def _kill_in_the_middle(client: httpx.Client, name: str) -> None:
    """Kill a process of the server while it answers; all others end, and nothing of ours is left.

    Args:
        client: Of the server.
        name: A word of the process's title; the one that answers clients has none of its own.
    """
    port = client.base_url.port
    assert port is not None
    processes = _processes(port)
    (turn,) = generate_trajectory(92_000, num_turns=1, questions_per_turn=1).turns
    body = {
        "model": "default", "temperature": 0, "max_tokens": 4000, "ignore_eos": True, "stream": True,
        "messages": [{"role": "user", "content": [_screen(turn.image_png), _text(turn.questions[0].text)]}],
    }  # fmt: skip
    victim = next(one for one in processes if name in " ".join(one.cmdline()))
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        ours = {inode for inode, pids in _holders().items() if pids & {one.pid for one in processes}}
        assert ours, "the request's screenshot"
        victim.kill()
        with suppress(httpx.TransportError):
            assert "data: [DONE]" not in list(lines)
    deadline = time.monotonic() + 60
    while (left := [one for one in processes if _is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert not ours & _holders().keys()
    assert [file for file in os.listdir("/dev/shm") if "star" in file] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_a_killed_process_takes_the_others_with_it_and_leaves_nothing_behind(
    client: httpx.Client, log_file: Path
) -> None:
    """The last test of this server. A new one starts at the same port."""
    _kill_in_the_middle(client, "scheduler")
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--skip-server-warmup"]
    port = client.base_url.port
    again = serving(flags, log_file.parent / "second.log", port=port)
    with again as url, httpx.Client(base_url=url, timeout=120) as second:
        assert generate(second).status_code == 200
        _kill_in_the_middle(second, "serve")
