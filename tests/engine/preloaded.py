"""SGLang's processes without the wait for its imports: they are forked from one process that has imported it.

An engine starts two processes, and each imports SGLang for eight seconds of CPU time: two thirds of a start. In the
block of :func:`preloaded_processes` multiprocessing starts them in another way, and they are the same otherwise: each
is a child of the test's process with the environment, the file descriptors and the command line of a spawned one, and
does what that command line says. Only for a CPU: an import may touch a GPU, which no fork survives.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import util
from typing import Any, NoReturn
from unittest.mock import patch

from star_kv_sglang import cpu_mode

_PR_SET_CHILD_SUBREAPER = 36
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's library starts its threads as it is imported, and a fork has none of them; PyTorch starts its own later."""
_MAX_MESSAGE, _MAX_FDS = 1 << 17, 64
_ABOVE_ALL_FDS = 1000
_STANDARD_FDS = (0, 1, 2)
_RUN_S = 300.0

_template: Template | None = None


class Template:
    """A process that has imported SGLang, as its parent sees it; it ends with that one.

    Args:
        pid: Of the process, a child of this one.
        asks: Where it takes wishes and answers with ids.
    """

    def __init__(self, pid: int, asks: socket.socket) -> None:
        self.pid, self._socket = pid, asks

    @classmethod
    def start(cls) -> Template:
        """Start one, which imports SGLang before it takes a wish."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = "import sys; from tests.engine.preloaded import serve; serve(int(sys.argv[1]))"
            process = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", program, str(theirs.fileno())],  # type: ignore[attr-defined]
                env={**os.environ, **_NO_THREADS, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
            )
        return cls(process.pid, ours)

    @classmethod
    def of_this_process(cls) -> Template:
        """A fork of this one, which has imported SGLang already and has no threads yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _take_wishes(theirs)
            os._exit(0)
        theirs.close()
        return cls(pid, ours)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def spawn(self, args: Sequence[Any], env: Mapping[str, str], fds: Mapping[int, int], *, leads: bool = False) -> int:
        """Start a process, as ``multiprocessing.util.spawnv_passfds`` does.

        Args:
            args: A command line of Python with ``-c``.
            env: Its environment.
            fds: Descriptors of this process by their numbers there.
            leads: It leads a session of its own, and forks the processes that it starts by multiprocessing.

        Returns:
            Its id; it is a child of this process.
        """
        wish = {
            "args": [os.fsdecode(word) for word in args],
            "env": dict(env),
            "fds": list(fds),
            "leads": leads,
        }
        with _adopting_orphans():
            socket.send_fds(self._socket, [json.dumps(wish).encode()], list(fds.values()))
            answer = self._socket.recv(_MAX_MESSAGE)
        if not answer:
            raise RuntimeError("the process that has imported SGLang is gone; its traceback is in the captured stderr")
        return int(answer)


def template() -> Template:
    """The one of this process, started where there is none."""
    global _template
    if _template is None or not _template.is_alive():
        _template = Template.start()
    return _template


@contextmanager
def preloaded_processes() -> Iterator[None]:
    """What multiprocessing spawns in the block is forked from a process that has imported SGLang."""
    with patch.object(util, "spawnv_passfds", _forking(template())):
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


def _forking(source: Template) -> Callable[[bytes, Sequence[Any], Sequence[int]], int]:
    """In place of ``multiprocessing.util.spawnv_passfds``."""
    spawn = util.spawnv_passfds

    def spawn_or_fork(path: bytes, args: Sequence[Any], fds: Sequence[int]) -> int:
        """Multiprocessing's own tracker of resources is started in the same way and needs nothing of SGLang."""
        if "--multiprocessing-fork" not in args:
            return spawn(path, args, fds)
        return source.spawn(args, os.environ, {fd: fd for fd in sorted({*fds, *_STANDARD_FDS})})

    return spawn_or_fork


@contextmanager
def kept_at_shutdown() -> Iterator[None]:
    """SGLang's shutdown ends all children of its process; in the block it spares the one that has imported SGLang."""
    from sglang.srt.entrypoints import engine

    kill = engine.kill_process_tree

    def kill_others(*args: Any, **kwargs: Any) -> None:
        kill(*args, **kwargs, skip_pid=_template.pid if _template is not None else None)

    with patch.object(engine, "kill_process_tree", kill_others):
        yield


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """A process whose parent ends becomes a child of this one."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def serve(fd: int) -> None:
    """Import SGLang, then fork whenever the test's process asks, until it is gone."""
    import sglang.cli.serve
    import sglang.srt.entrypoints.http_server  # noqa: F401

    # What every scheduler imports first: all of the models.
    import sglang.srt.models.registry

    gc.freeze()
    with socket.socket(fileno=fd) as asks:
        _take_wishes(asks)


def _take_wishes(asks: socket.socket) -> None:
    while True:
        message, fds, _, _ = socket.recv_fds(asks, _MAX_MESSAGE, _MAX_FDS)
        if not message:
            return
        pid = _fork_for(json.loads(message), fds, asks)
        for received in fds:
            os.close(received)
        asks.send(str(pid).encode())


def _fork_for(wish: dict[str, Any], fds: list[int], asks: socket.socket) -> int:
    """Fork a process that the asking one adopts, because the one between the two ends at once."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        child = os.fork()
        if child == 0:
            for ours in (reader, writer, asks.detach()):
                os.close(ours)
            _become(wish, fds)
        os.write(writer, str(child).encode())
        os._exit(0)
    os.waitpid(between, 0)
    pid = int(os.read(reader, 32))
    for ours in (reader, writer):
        os.close(ours)
    return pid


def _become(wish: dict[str, Any], fds: list[int]) -> NoReturn:
    """Run the command line that a spawned process would have, with its environment and descriptors."""
    code = 1
    try:
        _take(fds, wish["fds"])
        os.environ.clear()
        os.environ.update(wish["env"])
        if wish["leads"]:
            os.setsid()
            util.spawnv_passfds = _forking(Template.of_this_process())
        program = wish["args"].index("-c") + 1
        sys.argv = ["-c", *wish["args"][program + 1 :]]
        exec(wish["args"][program], {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _take(fds: Sequence[int], wanted: Sequence[int]) -> None:
    """Move the received descriptors to the numbers that they have in the asking process."""
    above = [fcntl.fcntl(received, fcntl.F_DUPFD, _ABOVE_ALL_FDS) for received in fds]
    for received in fds:
        os.close(received)
    for received, number in zip(above, wanted, strict=True):
        os.dup2(received, number)
        os.close(received)
