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

from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.rollout import read_trace
from star_kv_sglang.tools.rollout.trace import without_measurements
from tests.rollout.fake_server import fake_server, reply

pytestmark = pytest.mark.slow

PROGRAM = "import sys; from star_kv_sglang.cli.main import main; sys.exit(main(['rollout', *sys.argv[1:]]))"
TASKS = ("click-test-2", "enter-text")


def words(url: str, out: Path) -> list[str]:
    tasks = ",".join(TASKS)
    return ["--env", "miniwob", "--agent", "scripted", "--tasks", tasks, "--base-url", url, "--out", str(out)]


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


def test_a_killed_rollout_goes_on_to_the_same_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(reply("x4 y4")) as server:
        assert main(["rollout", *words(server.url, tmp_path / "whole")]) == 0
        printed = capsys.readouterr().out
        asked = len(server.requests)

        killed = subprocess.Popen([sys.executable, "-c", PROGRAM, *words(server.url, tmp_path / "killed")])
        try:
            wait_until(lambda: num_turns(tmp_path / "killed") >= 20, "it plays")
            children = psutil.Process(killed.pid).children(recursive=True)
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        wait_until(lambda: not any(child.is_running() for child in children), "the browser ends with its rollout")
        ended = sum(read_trace(path)[2] is not None for path in (tmp_path / "killed" / "traces").rglob("*.jsonl"))
        assert ended < 8 * len(TASKS), "it was killed in the middle"
        kept = num_turns(tmp_path / "killed")

        before = len(server.requests)
        assert main(["rollout", *words(server.url, tmp_path / "killed")]) == 0
    assert traces(tmp_path / "killed") == traces(tmp_path / "whole")
    assert len(traces(tmp_path / "whole")) == 8 * len(TASKS)
    assert len(server.requests) - before == asked - kept, "what was recorded is not asked again"
    assert all(lines[-1]["reward"] > 0.9 for lines in traces(tmp_path / "whole").values())
    assert "100%" in printed and "our code" in printed
