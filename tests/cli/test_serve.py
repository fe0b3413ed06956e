"""`star-kv serve`: which process it becomes."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli import banner
from star_kv_sglang.cli.serve import plan, run
from star_kv_sglang.cpu_mode.activation import STAND_IN_DIR
from star_kv_sglang.errors import StarKVError
from star_kv_sglang.flags import FLAGS, config_of
from star_kv_sglang.patches import cpu_server

USER = ["--model-path", "m", "--kv-policy", "star", "--kv-budget", "0.2", "--port", "31000"]


def test_on_a_gpu_machine_it_is_sglang_serve_and_nothing_else() -> None:
    environment = {"HOME": "/h", "PYTHONPATH": "/a"}
    launch = plan(USER, environment, gpu=True)
    assert launch.argv[0] == sys.executable
    assert launch.argv[3:] == ["serve", "--enable-cache-report", *USER]
    assert launch.environment == environment
    assert launch.note is None


def test_without_a_gpu_it_is_sglang_serve_in_cpu_mode_and_says_so() -> None:
    launch = plan(USER, {"HOME": "/h"}, gpu=False)
    with_report = ["--enable-cache-report", *USER]
    assert launch.argv[3:] == ["serve", *cpu_mode.missing_cpu_arguments(USER), *with_report]
    assert launch.environment["PYTHONPATH"] == str(STAND_IN_DIR)
    assert launch.environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert launch.note == (
        "No GPU found: CPU mode is on. --device cpu --attention-backend torch_native --sampling-backend pytorch "
        "--mm-attention-backend sdpa --max-total-tokens 32768"
    )


@pytest.mark.parametrize(
    ("more", "forks"),
    [([], True), (["--tokenizer-worker-num=1"], True), (["--tokenizer-worker-num", "2"], False)],
    ids=["not said", "one", "two"],
)
def test_processes_are_forked_where_one_answers_clients(more: list[str], forks: bool) -> None:
    launch = plan([*USER, *more], {"OPENBLAS_NUM_THREADS": "4"}, gpu=False)
    assert (launch.argv[2] == cpu_server.PROGRAM) is forks
    assert launch.environment["OPENBLAS_NUM_THREADS"] == ("1" if forks else "4")


def test_the_note_names_only_what_was_added() -> None:
    launch = plan([*USER, "--device", "cpu", "--attention-backend=triton", "--enable-cache-report"], {}, gpu=False)
    assert launch.argv.count("--enable-cache-report") == 1
    assert launch.note == (
        "No GPU found: CPU mode is on. --sampling-backend pytorch --mm-attention-backend sdpa --max-total-tokens 32768"
    )


def test_the_cpu_is_refused_on_a_gpu_machine() -> None:
    with pytest.raises(cpu_mode.CpuModeError, match="on a machine with a GPU"):
        plan([*USER, "--device", "cpu"], {}, gpu=True)


def test_a_gpu_is_refused_where_there_is_none() -> None:
    with pytest.raises(cpu_mode.CpuModeError, match="lists no GPU"):
        plan([*USER, "--device=cuda"], {}, gpu=False)


BECOMES = (
    "import os, sys\n"
    "os.execve = lambda path, argv, environment: print(*argv[3:], sep='|')\n"
    "from star_kv_sglang import cpu_mode\n"
    "cpu_mode.is_gpu_present = lambda: True\n"
    "from star_kv_sglang.cli import banner\n"
    "banner.start = lambda *given: None\n"
    "from star_kv_sglang.cli.main import main\n"
    "status = main()\n"
    "print('TORCH' if 'torch' in sys.modules else '', file=sys.stderr, end='')\n"
    "sys.exit(status)\n"
)


def serve(*words: str) -> subprocess.CompletedProcess[str]:
    """`star-kv serve` in a process that does not become a server, but prints its words."""
    command = [sys.executable, "-c", BECOMES, "serve", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_words_reach_sglang_in_their_order_and_unread() -> None:
    """The command sees the words first: unknown flags and values that look like flags must pass through it."""
    words = [
        "--kv-policy",
        "star",
        "--kv-policy-config",
        '{"current_last": true}',
        "-x",
        "--port=1",
        "--log-level",
        "info",
        "-1",
    ]
    answer = serve("m", *words)
    assert answer.stdout.strip() == "|".join(["serve", "m", "--enable-cache-report", *words]), answer.stderr
    assert answer.stderr == ""


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_shows_our_flags_first_and_says_where_sglangs_are(word: str) -> None:
    answer = serve("--model-path", "m", word)
    assert answer.returncode == 0 and answer.stderr == ""
    first_screen = "\n".join(answer.stdout.splitlines()[:24])
    assert all(flag.option in first_screen for flag in FLAGS)
    assert "`sglang serve --help` lists them" in answer.stdout
    assert "pyramidkv" not in answer.stdout
    assert len(answer.stdout.splitlines()) < 48


STAR = ["--kv-policy", "star"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kv-policy", "pyramid"], "--kv-policy 'pyramid' does not exist; choose one of full, "),
        (["--kv-policy=pyramidkv"], "--kv-policy pyramidkv is not offered: "),
        ([*STAR, "--kv-budget", "7"], "--kv-budget 7.0 must be a number in (0, 1]"),
        ([*STAR, "--kv-budget", "a"], "--kv-budget 'a' must be a number in (0, 1]"),
        ([*STAR, "--kv-budget"], "--kv-budget needs a value: a number"),
        ([*STAR, "--kv-budget", "--port"], "--kv-budget needs a value"),
        ([*STAR, "--kv-token-budget", "x"], "--kv-token-budget 'x' must be a whole number"),
        (["--kv-image-cache-mb", "-1"], "--kv-image-cache-mb '-1' must be a whole number of MiB, 0 or more"),
        ([*STAR, "--kv-policy-config", '{"frame_floor": 2}'], "frame_floor 2 must be a number in [0, 1)"),
        ([*STAR, "--kv-policy-config", "{"], "--kv-policy-config is not valid JSON"),
        (["--kv-budget", "0.2"], "need a policy that prunes; add --kv-policy star"),
    ],
)
def test_a_wrong_flag_is_answered_at_once_in_one_line(words: list[str], message: str) -> None:
    """Before torch and SGLang are imported, and before anything else is looked at."""
    started = time.monotonic()
    answer = serve("--model-path", "no/such/model", *words)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ") and message in answer.stderr
    assert answer.stderr.count("\n") == 1 and answer.stderr.endswith("\n")
    assert time.monotonic() - started < 5, "0.2 s on an idle machine; torch alone takes 3 s there"


def test_a_parameter_that_the_policy_does_not_have_is_named_with_those_that_it_has() -> None:
    """The policy's own file knows them: it is imported, and torch with it, but not SGLang."""
    answer = serve("m", *STAR, "--kv-policy-config", '{"alfa": 1}')
    assert answer.returncode == 2
    assert "error: --kv-policy-config: star has no parameter alfa; its parameters: beside_peak, " in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--kv-token-budget", "x", "--kv-observation-window", "y"],
            ["--kv-token-budget 'x'", "--kv-observation-window 'y'"],
        ),
        (
            ["--kv-budget", "7", "--kv-policy-config", '{"frame_floor": -1}'],
            ["--kv-budget 7.0", "frame_floor -1 must be"],
        ),
        (["--kv-budget", "7", "--kv-policy", "stars"], ["--kv-policy 'stars'", "--kv-budget 7.0"]),
    ],
)
def test_several_wrong_flags_are_named_together(words: list[str], messages: list[str]) -> None:
    answer = serve("m", *STAR, *words)
    assert answer.returncode == 2
    lines = answer.stderr.splitlines()
    assert len(lines) == len(messages)
    assert all(message in line for message, line in zip(messages, lines, strict=True))


def test_a_missing_sglang_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StarKVError, match=r"SGLang is not installed: pip install sglang==0\.5\.23"):
        run(["m"])


def test_flags_of_a_configuration_file_are_checked_too(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("kv-policy: star\nkv-policy-config: {alfa: 1}\n")
    assert "star has no parameter alfa" in serve("m", "--config", str(config)).stderr
    config.write_text("kv-policy: star\nkv-policy-config: {current_last: true}\n")
    assert serve("m", "--config", str(config)).returncode == 0


def test_the_flags_are_those_that_sglang_gets() -> None:
    from star_kv_sglang.server_args import StarServerArgs

    # Not by the name in SGLang's module: where a plugin was loaded in this process, it stands for ours.
    ours = set(StarServerArgs.__struct_fields__) - set(StarServerArgs.__base__.__struct_fields__)
    assert {flag.name for flag in FLAGS} == ours


def info(**given: object) -> dict[str, object]:
    return {"model_path": "/m/qwen", "max_total_num_tokens": 32768, **given}


def test_the_banner_says_where_what_and_how_much() -> None:
    policy = banner.policy_line(config_of({"kv_policy": "star", "kv_budget": "0.1"}))
    assert banner.text("http://127.0.0.1:30000", policy, info()).split("\n") == [
        "",
        "Ready at http://127.0.0.1:30000/v1 (OpenAI's API)",
        "  model   /m/qwen",
        "  policy  star, budget 0.1 of a branch's private screenshot tokens",
        "  pool    32,768 tokens",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "full (stock SGLang: nothing is pruned; --kv-policy star prunes)"),
        ({"kv_policy": "star", "kv_token_budget": "9000"}, "star, 9,000 tokens for all branches"),
        (
            {"kv_policy": "star", "kv_image_window": "5"},
            "star, budget 0.2 of a branch's private screenshot tokens, window of 5 screenshots",
        ),
        ({"kv_policy": "window", "kv_image_window": "5"}, "window, window of 5 screenshots"),
        ({"kv_policy": "window"}, "window, as requests ask (kv_image_window)"),
        (
            {"kv_policy": "window", "kv_image_window": "5", "kv_recognise_windows": "all"},
            "window, window of 5 screenshots, windows of clients recognised (all)",
        ),
    ],
)
def test_the_banner_names_the_policy(given: dict[str, str], line: str) -> None:
    assert banner.policy_line(config_of(given)) == line


@pytest.mark.parametrize("port", ["abc", "", "--host", "70000"])
def test_a_wrong_port_is_sglangs_to_report(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banner.subprocess, "Popen", lambda *given, **more: pytest.fail("nothing to wait for"))
    banner.start(1, {"port": port}, config_of({}), {})


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:30000"),
        ({"host": "0.0.0.0", "port": "1"}, "http://127.0.0.1:1"),
        ({"host": "::1", "port": "1"}, "http://[::1]:1"),
        ({"host": "localhost", "port": "1", "ssl_certfile": "c"}, "https://localhost:1"),
    ],
)
def test_the_banner_asks_the_server_where_it_listens(given: dict[str, str], url: str) -> None:
    assert banner.url_of(given) == url


def test_the_banner_ends_when_the_server_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    banner.wait({"server": 0, "url": "http://127.0.0.1:1", "api_key": None, "policy": ""})
    assert capsys.readouterr().err == ""


def test_the_key_is_on_no_command_line_and_the_banner_comes_from_the_process_beside(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def recorded(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return popen(command, **more)

    monkeypatch.setattr(banner.subprocess, "Popen", recorded)
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            body = json.dumps(info() if self.path == "/server_info" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    banner.start(os.getpid(), {"port": str(port), "api_key": "secret"}, config_of({}), os.environ)
    assert [command[1:] for command in commands] == [["-m", "star_kv_sglang.cli.banner"]]
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        said, deadline = "", time.monotonic() + 30
        while "Ready" not in said and time.monotonic() < deadline:
            time.sleep(0.1)
            said += capfd.readouterr().err
        server.shutdown()
    assert f"Ready at http://127.0.0.1:{port}/v1" in said
    assert set(seen) == {"Bearer secret"}
