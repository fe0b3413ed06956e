"""Starts ``star-kv serve`` as a child process, waits until it answers, and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx

from star_kv_sglang.tools.rollout.errors import RolloutError

_COMMAND = (sys.executable, "-c", "import sys; from star_kv_sglang.cli.main import main; sys.exit(main())", "serve")
_POLL_S = 0.5
_GRACE_S = 20.0


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    arguments: Sequence[str],
    log_file: Path,
    *,
    port: int | None = None,
    timeout_s: float = 240.0,
    on_wait: Callable[[float], None] = lambda seconds: None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Runs a server while the body runs.

    Args:
        arguments: flags of ``star-kv serve``, without host and port.
        log_file: receives all that the server prints.
        port: a free one by default.
        timeout_s: seconds until ``/health`` must have answered 200.
        on_wait: called about twice a second while waiting, with the seconds waited.
        environment: of the server; this process's by default.

    Yields:
        The server's base URL.

    Raises:
        RolloutError: the server ended, or was not ready in time; the message ends with its last words.
    """
    port = free_port() if port is None else port
    url = f"http://127.0.0.1:{port}"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with terminable(), log_file.open("wb") as log:
        process = subprocess.Popen(
            [*_COMMAND, *arguments, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(process, url, log_file, timeout_s, on_wait)
            yield url
        finally:
            _end(process)


def _wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log_file: Path, timeout_s: float, on_wait: Callable[[float], None]
) -> None:
    started = time.monotonic()
    while not _healthy(url):
        waited = time.monotonic() - started
        if process.poll() is not None:
            raise RolloutError(f"the server ended with status {process.returncode}; {_last_words(log_file)}")
        if waited > timeout_s:
            raise RolloutError(f"the server was not ready within {timeout_s:g} s; {_last_words(log_file)}")
        on_wait(waited)
        time.sleep(_POLL_S)


def _healthy(url: str) -> bool:
    """Whether warm-up is over: until then the port is closed, or ``/health`` answers 503."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def _last_words(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"the end of {log_file}:\n" + "\n".join(lines[-40:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, then ends what is left of its session: the processes that it has spawned.

    The first signal is for the server alone: it takes a scheduler that ends by itself for a crash.
    """
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM unwind this process as Ctrl-C does: by default it would end at once and leave the server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
