"""SGLang's processes without the wait for its imports: they are forked from one process that has imported it.

In the block of :func:`preloaded_processes` multiprocessing starts an engine's processes as `star-kv serve` does on a
CPU (`cpu_mode/template.py`), from a template that all tests of this process share.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import util
from typing import Any
from unittest.mock import patch

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode.template import SINGLE_THREADED, Template, forking, take_wishes
from star_kv_sglang.patches.cpu_server import preload

_RUN_S = 300.0

_template: Template | None = None


def _started() -> Template:
    """A new one, which imports SGLang before it takes a wish."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = "import sys; from tests.engine.preloaded import serve; serve(int(sys.argv[1]))"
        process = subprocess.Popen(
            [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", program, str(theirs.fileno())],  # type: ignore[attr-defined]
            env={**os.environ, **SINGLE_THREADED, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[theirs.fileno()],
        )
    return Template(process.pid, ours)


def template() -> Template:
    """The one of this process, started where there is none."""
    global _template
    if _template is None or not _is_alive(_template.pid):
        _template = _started()
    return _template


def _is_alive(pid: int) -> bool:
    """Whether a child of this process has not ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


@contextmanager
def preloaded_processes() -> Iterator[None]:
    """What multiprocessing spawns in the block is forked from a process that has imported SGLang."""
    with patch.object(util, "spawnv_passfds", forking(template())):
        yield


def run_program(program: str, words: Sequence[str] = (), *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -c program words`` in a process that has imported SGLang already, and keep what it writes."""
    if cpu_mode.is_gpu_present():
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=_RUN_S, check=False)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        fds = {0: nothing.fileno(), 1: out.fileno(), 2: err.fileno()}
        pid = template().spawn(["-c", program, *words], env, fds)
        ends_at = time.monotonic() + _RUN_S
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > ends_at:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(["-c", program, *words], os.waitstatus_to_exitcode(ended[1]), *texts)


@contextmanager
def kept_at_shutdown() -> Iterator[None]:
    """SGLang's shutdown ends all children of its process; in the block it spares the one that has imported SGLang."""
    from sglang.srt.entrypoints import engine

    kill = engine.kill_process_tree

    def kill_others(*args: Any, **kwargs: Any) -> None:
        kill(*args, **kwargs, skip_pid=_template.pid if _template is not None else None)

    with patch.object(engine, "kill_process_tree", kill_others):
        yield


def serve(fd: int) -> None:
    """Import SGLang, then fork whenever the test's process asks, until it is gone."""
    preload()
    with socket.socket(fileno=fd) as asks:
        take_wishes(asks)
