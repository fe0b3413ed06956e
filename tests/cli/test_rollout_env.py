"""``star-kv rollout --env`` on a real server: what branches share and what is kept, and a server that is restarted."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.rollout import BranchResult, read_trace
from star_kv_sglang.tools.rollout.server import free_port
from tests.architecture.imports import ROOT
from tests.engine.preloaded_server import preloaded_serving

MODEL = ROOT / "examples" / "tinygui" / "model"
FLAGS = ("--kv-policy", "star", "--enable-metrics", "--enable-cache-report", "--skip-server-warmup")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


class Server:
    """A server that can be restarted at its port."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._running = folder, free_port(), ExitStack()
        self.start()

    def kill(self) -> None:
        """All its processes at once, with what they are doing; asked to end, it would first answer everybody."""
        listening = [one.pid for one in psutil.net_connections("tcp") if one.laddr.port == self._port and not one.raddr]
        os.killpg(listening[0], signal.SIGKILL)
        self.stop()

    def start(self) -> None:
        log = self._folder / f"server{time.monotonic_ns()}.log"
        serving = preloaded_serving(["--model-path", str(MODEL), *FLAGS], log, port=self._port)
        self.url = self._running.enter_context(serving)

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def results(out: Path) -> list[BranchResult]:
    found = []
    for path in sorted((out / "traces").rglob("*.jsonl")):
        branch, rows, end = read_trace(path)
        assert end is not None
        found.append(BranchResult(branch, tuple(rows), end))
    return found


def num_turns(out: Path) -> int:
    return sum(path.read_text(encoding="utf-8").count('"turn"') for path in out.rglob("*.jsonl"))


def test_branches_in_a_browser_share_their_beginning_and_keep_a_part_of_the_rest(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env", "miniwob", "--tasks", "enter-text", "--branches", "4", "--out", str(tmp_path)]
    assert main(["rollout", *words, "--base-url", server.url]) == 0
    played = results(tmp_path)
    assert [one.success for one in played] == [True] * 4
    first = [one.rows[0].measured for one in played]
    whole = first[0]["prompt_tokens"]
    assert sorted(one["cached_tokens"] for one in first)[1:] == [whole - 1] * 3, "the prompt was computed once"
    printed = capsys.readouterr().out
    assert "shared by branches, at the end" in printed and "pruned meanwhile" in printed
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    split = summary["time_split"]
    assert split["own_s"] < 0.1 * (split["environment_s"] + split["server_s"]), "ours is not the bottleneck"
    assert summary["pool"]["pruned_tokens"] > 0 and summary["pool"]["shared_tokens"] > 0


def test_a_server_that_is_killed_in_the_middle_and_started_again_is_waited_for(server: Server, tmp_path: Path) -> None:
    """The small model plays the generated worlds; the new server knows none of the screenshots' digests."""
    words = ["--env", "tinygui.environment:worlds", "--agent", "small", "--tasks", "panels", "--branches", "8"]
    status: list[int] = []
    words += ["--base-url", server.url, "--out", str(tmp_path), "--temperature", "0.8", "--patience", "300"]
    rollout = threading.Thread(target=lambda: status.append(main(["rollout", *words])), daemon=True)
    rollout.start()
    deadline = time.monotonic() + 120
    while num_turns(tmp_path) < 10:
        assert rollout.is_alive() and time.monotonic() < deadline, "it plays"
        time.sleep(0.02)
    server.kill()
    killed_at = num_turns(tmp_path)
    server.start()
    rollout.join(300)
    assert status == [0]
    played = results(tmp_path)
    assert killed_at < 48 and [len(one.rows) for one in played] == [6] * 8
    assert all(one.end.reward > 0.8 and one.end.error is None for one in played)
