"""Starting and ending the server's process, with small programs in its place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from star_kv_sglang.tools.rollout import server
from star_kv_sglang.tools.rollout.errors import RolloutError

# Answers 503 twice before 200, as SGLang does until its warm-up is over, and has a child of its own.
HEALTHY = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    left = 2
    def do_GET(self):
        self.send_response(503 if Handler.left > 0 else 200)
        Handler.left -= 1
        self.send_header("Content-Length", "0")
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(server, "_POLL_S", 0.05)
    return monkeypatch


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_waits_for_200_and_ends_the_children_too(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in.setattr(server, "_COMMAND", (sys.executable, "-c", HEALTHY))
    waits: list[float] = []
    log = tmp_path / "deep" / "server.log"
    with server.serving(["--flag"], log, on_wait=waits.append) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        child = int(log.read_text().split()[1])
        assert alive(child)
    assert len(waits) >= 2
    assert wait_until_gone(child)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_terminated_parent_takes_the_server_along(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from star_kv_sglang.tools.rollout import server
server._COMMAND = (sys.executable, "-c", {HEALTHY!r})
with server.serving([], Path({str(tmp_path / "server.log")!r})):
    print("ready", flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    child = int((tmp_path / "server.log").read_text().split()[1])
    parent.terminate()
    assert parent.wait(30) == 128 + 15
    parent.stdout.close()
    assert wait_until_gone(child)


def test_a_server_that_ends_shows_its_last_words(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in.setattr(server, "_COMMAND", (sys.executable, "-c", "import sys; sys.exit('no such model')"))
    with (
        pytest.raises(RolloutError, match=r"(?s)ended with status 1.*no such model"),
        server.serving([], tmp_path / "server.log"),
    ):
        pass


def test_a_server_that_never_gets_ready_is_ended(stand_in: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    stand_in.setattr(server, "_COMMAND", (sys.executable, "-c", program))
    with (
        pytest.raises(RolloutError, match="was not ready within 1 s"),
        server.serving([], tmp_path / "server.log", timeout_s=1),
    ):
        pass
    pid = int((tmp_path / "server.log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
