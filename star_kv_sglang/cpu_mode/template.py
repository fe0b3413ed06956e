"""SGLang's processes on a CPU without a wait for each one's imports: they are forked from one that has imported it.

A server is three processes, and each would import SGLang for twelve seconds and keep a gigabyte of modules of its own.
A `Template` is a process that has imported it; `forking` makes multiprocessing start processes by it. Each is a child
of the process that asks, with the environment, the descriptors and the command line that a spawned one would have, and
does what that command line says. Only for a CPU: an import may touch a GPU, which no fork survives.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import util
from typing import Any, Final, NoReturn

SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy's library starts its threads as it is imported, and a fork has none of them; PyTorch starts its own later."""

_PR_SET_CHILD_SUBREAPER = 36
_MAX_FDS = 64
_MAX_ID = 32
_STANDARD_FDS = (0, 1, 2)
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)
"""Which SGLang raises in the process that starts the others."""

_GONE: Final = "the process that has imported SGLang is gone; what it said is in the log"
_NO_FORK: Final = "no process can be forked from the one that has imported SGLang: a limit of processes or of memory"

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
        self._lock = threading.Lock()

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

    def spawn(self, args: Sequence[Any], env: Mapping[str, str], fds: Mapping[int, int]) -> int:
        """Start a process, as ``multiprocessing.util.spawnv_passfds`` does.

        Args:
            args: A command line of Python with ``-c``.
            env: Its environment.
            fds: Descriptors of this process by their numbers there.

        Returns:
            Its id; it is a child of this process.

        Raises:
            RuntimeError: The template is gone, or cannot fork.
        """
        wish = {
            "args": [os.fsdecode(word) for word in args],
            "env": dict(env),
            "fds": list(fds),
            "limits": [resource.getrlimit(one) for one in _LIMITS],
            "ignores_interrupts": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        }
        try:
            with self._lock, _adopting_orphans(), _in_memory(json.dumps(wish).encode()) as told:
                socket.send_fds(self._socket, [b"wish"], [told, *fds.values()])
                answer = self._socket.recv(_MAX_ID)
        except OSError as error:
            raise RuntimeError(_GONE) from error
        if not answer.isdigit():
            raise RuntimeError(_NO_FORK if answer else _GONE)
        return int(answer)


def forking(source: Template, spawn: Spawn = util.spawnv_passfds) -> Spawn:
    """What to put in the place of ``multiprocessing.util.spawnv_passfds``.

    Args:
        source: Forks the processes that run what multiprocessing is told to.
        spawn: Starts the others: multiprocessing's own tracker of resources needs nothing of SGLang.
    """

    def spawn_or_fork(path: bytes, args: Sequence[Any], fds: Sequence[int]) -> int:
        # SGLang binds a process to processors by another executable, which runs Python.
        if "--multiprocessing-fork" not in args or os.fsdecode(path) != sys.executable:
            return spawn(path, args, fds)
        return source.spawn(args, os.environ, {fd: fd for fd in sorted({*fds, *_STANDARD_FDS})})

    return spawn_or_fork


def take_wishes(asks: socket.socket) -> None:
    """Fork whenever the process at the other end asks, until it is gone."""
    # Ctrl-C reaches all processes of a terminal; this one ends with the one that asks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, received, _, _ = socket.recv_fds(asks, _MAX_ID, _MAX_FDS)
        if not message:
            return
        told, *fds = received
        with os.fdopen(told, "rb") as file:
            file.seek(0)
            wish = json.load(file)
        try:
            answer = str(_fork_for(wish, fds, asks)).encode()
        except OSError:
            answer = b"no"
        for one in fds:
            os.close(one)
        asks.send(answer)


@contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """A file of no name with this content: an environment may be larger than a message."""
    descriptor = os.memfd_create("wish")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield descriptor
    finally:
        os.close(descriptor)


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
    try:
        between = os.fork()
        if between == 0:
            try:
                child = os.fork()
                if child == 0:
                    for ours in (reader, writer, asks.detach()):
                        os.close(ours)
                    _become(wish, fds)
                os.write(writer, str(child).encode())
            finally:
                os._exit(0)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as ids:
        os.waitpid(between, 0)
        told = ids.read()
    if not told:
        raise ChildProcessError(errno.EAGAIN, "a second process cannot be forked")
    return int(told)


def _become(wish: dict[str, Any], fds: list[int]) -> NoReturn:
    """Run the command line that a spawned process would have, with its environment and descriptors."""
    code = 1
    try:
        interrupts = signal.SIG_IGN if wish["ignores_interrupts"] else signal.default_int_handler
        signal.signal(signal.SIGINT, interrupts)
        for limit, soft_and_hard in zip(_LIMITS, wish["limits"], strict=True):
            resource.setrlimit(limit, tuple(soft_and_hard))
        _take(fds, wish["fds"])
        os.environ.clear()
        os.environ.update(wish["env"])
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
    above = [fcntl.fcntl(received, fcntl.F_DUPFD, max(wanted) + 1) for received in fds]
    for received in fds:
        os.close(received)
    for received, number in zip(above, wanted, strict=True):
        os.dup2(received, number)
        os.close(received)
