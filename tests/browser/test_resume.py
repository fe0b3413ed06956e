"""A rollout of eight branches in the real browser that is killed, and goes on to the same traces."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from star_kv_sglang.tools.rollout import read_trace
from star_kv_sglang.tools.rollout.trace import without_measurements
from tests.rollout.fake_server import fake_server, reply

pytestmark = pytest.mark.slow

TASKS = ("click-test-2", "enter-text")


def start(url: str, out: Path) -> subprocess.Popen[str]:
    words = ["--env", "miniwob", "--agent", "scripted", "--tasks", ",".join(TASKS), "--base-url", url]
    program = "import sys; from star_kv_sglang.cli.main import main; sys.exit(main(['rollout', *sys.argv[1:]]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words, "--out", str(out)], stdout=subprocess.PIPE, text=True
    )


def traces(out: Path) -> dict[str, list[dict[str, Any]]]:
    folder = out / "traces"
    return {str(path.relative_to(folder)): without_measurements(path) for path in sorted(folder.rglob("*.jsonl"))}


def num_turns(out: Path) -> int:
    return sum(path.read_text(encoding="utf-8").count('"turn"') for path in out.rglob("*.jsonl"))


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_killed_rollout_goes_on_to_the_same_traces(tmp_path: Path) -> None:
    with fake_server(reply("x4 y4")) as server:
        whole = start(server.url, tmp_path / "whole")
        printed, _ = whole.communicate(timeout=120)
        assert whole.returncode == 0, printed
        asked = len(server.requests)

        killed = start(server.url, tmp_path / "killed")
        wait_until(lambda: num_turns(tmp_path / "killed") >= 20, "it plays")
        children = psutil.Process(killed.pid).children(recursive=True)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        wait_until(lambda: not any(child.is_running() for child in children), "the browser ends with its rollout")
        ended = sum(read_trace(path)[2] is not None for path in (tmp_path / "killed" / "traces").rglob("*.jsonl"))
        assert ended < 8 * len(TASKS), "it was killed in the middle"
        kept = num_turns(tmp_path / "killed")

        before = len(server.requests)
        resumed = start(server.url, tmp_path / "killed")
        assert resumed.communicate(timeout=120) and resumed.returncode == 0
    assert traces(tmp_path / "killed") == traces(tmp_path / "whole")
    assert len(traces(tmp_path / "whole")) == 8 * len(TASKS)
    assert asked - kept <= len(server.requests) - before <= asked - kept + 8, "what was recorded is not asked again"
    rewards = {lines[-1]["reward"] > 0.9 for lines in traces(tmp_path / "whole").values()}
    assert rewards == {True}
    assert "100%" in printed and "our code" in printed
