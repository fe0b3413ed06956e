"""``star-kv serve`` without the wait for its imports, for tests that ask a server and do not look at how it starts.

The server is a fork of the process that has imported SGLang (`preloaded`), with the command line and the environment
that ``star-kv serve`` would become, and so are its scheduler and the others. Only what the command itself prints is
missing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from star_kv_sglang import cpu_mode
from star_kv_sglang.cli.serve import plan
from star_kv_sglang.tools.rollout.server import free_port, serving
from tests.engine.preloaded import template

_START_S, _END_S, _POLL_S = 240.0, 30.0, 0.2


@contextmanager
def preloaded_serving(arguments: Sequence[str], log_file: Path, *, port: int | None = None) -> Iterator[str]:
    """Runs a server while the body runs; arguments and result as of `serving`, which starts it on a GPU."""
    if cpu_mode.is_gpu_present():
        with serving(arguments, log_file, port=port) as url:
            yield url
        return
    port = free_port() if port is None else port
    url = f"http://127.0.0.1:{port}"
    launch = plan([*arguments, "--host", "127.0.0.1", "--port", str(port)], os.environ, gpu=False)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log, open(os.devnull, "rb") as nothing:
        fds = {0: nothing.fileno(), 1: log.fileno(), 2: log.fileno()}
        # In a session of its own, so that all of it can be ended.
        _, program, *words = launch.argv[1:]
        pid = template().spawn(["-c", f"import os; os.setsid(); {program}", *words], launch.environment, fds)
    try:
        _wait_until_healthy(pid, url, log_file)
        yield url
    finally:
        _end(pid)


def _wait_until_healthy(pid: int, url: str, log_file: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not come up:\n{log_file.read_text(encoding='utf-8')[-4000:]}")
        time.sleep(_POLL_S)


def _end(pid: int) -> None:
    """The first signal is for the server alone: it takes a scheduler that ends by itself for a crash."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_S
    with suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
