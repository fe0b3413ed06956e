"""SGLang's processes on a CPU without a wait for each one's imports: they are forked from one that has imported it.

A server is three processes, and each would import SGLang for twelve seconds and keep a gigabyte of modules of its own.
A `Template` is a process that has imported it; `forking` makes multiprocessing start processes by it. Each is a child
of the process that asks, with the environment, the descriptors and the command line that a spawned one would have, and
does what that command line says. Only for a CPU: an import may touch a GPU, which no fork survives.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import util
from typing import Any, Final, NoReturn

SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's library starts its threads as it is imported, and a fork has none of them; PyTorch starts its own later."""

_PR_SET_CHILD_SUBREAPER = 36
_MAX_MESSAGE, _MAX_FDS = 1 << 17, 64
_ABOVE_ALL_FDS = 1000
_STANDARD_FDS = (0, 1, 2)

Spawn = Callable[[bytes, Sequence[Any], Sequence[int]], int]
"""``multiprocessing.util.spawnv_passfds``: a path, a command line, descriptors to pass on; the id of the process."""


class Template:
    """A process that has imported SGLang, as its parent sees it; it ends with that one.

    Args:
        pid: Of the process, a child of this one.
        asks: Where it takes wishes and answers with ids.
    """

    def __init__(self, pid: int, asks: socket.socket) -> None:
        self.pid, self._socket = pid, asks

    @classmethod
    def of_this_process(cls) -> Template:
        """A fork of this one, which has imported SGLang already and has no threads yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            take_wishes(theirs)
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
            leads: It leads a session of its own.

        Returns:
            Its id; it is a child of this process.

        Raises:
            RuntimeError: The template is gone.
        """
        wish = {"args": [os.fsdecode(word) for word in args], "env": dict(env), "fds": list(fds), "leads": leads}
        with _adopting_orphans():
            socket.send_fds(self._socket, [json.dumps(wish).encode()], list(fds.values()))
            answer = self._socket.recv(_MAX_MESSAGE)
        if not answer:
            raise RuntimeError("the process that has imported SGLang is gone; what it said is in the log")
        return int(answer)


def forking(source: Template, spawn: Spawn = util.spawnv_passfds) -> Spawn:
    """What to put in the place of ``multiprocessing.util.spawnv_passfds``.

    Args:
        source: Forks the processes that run what multiprocessing is told to.
        spawn: Starts the others: multiprocessing's own tracker of resources needs nothing of SGLang.
    """

    def spawn_or_fork(path: bytes, args: Sequence[Any], fds: Sequence[int]) -> int:
        if "--multiprocessing-fork" not in args:
            return spawn(path, args, fds)
        return source.spawn(args, os.environ, {fd: fd for fd in sorted({*fds, *_STANDARD_FDS})})

    return spawn_or_fork


def take_wishes(asks: socket.socket) -> None:
    """Fork whenever the process at the other end asks, until it is gone."""
    # Ctrl-C reaches all processes of a terminal; this one ends with the one that asks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(asks, _MAX_MESSAGE, _MAX_FDS)
        if not message:
            return
        pid = _fork_for(json.loads(message), fds, asks)
        for received in fds:
            os.close(received)
        asks.send(str(pid).encode())


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """A process whose parent ends becomes a child of this one."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)


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
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take(fds, wish["fds"])
        os.environ.clear()
        os.environ.update(wish["env"])
        if wish["leads"]:
            os.setsid()
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
