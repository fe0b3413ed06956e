"""A process that is forked from the one that has imported SGLang is what a spawned one is."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.cpu_mode import template
from star_kv_sglang.cpu_mode.template import forking
from tests.engine import preloaded
from tests.engine.machine import environment
from tests.engine.preloaded import preloaded_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="a process that has touched a GPU cannot be forked"),
]

IMPORTED = "sglang.srt.managers.scheduler"
START_S = 60
OF_THE_TERMINAL = {"LINES", "COLUMNS"}
"""A library of Python's debugger sets them behind ``os.environ``: spawned processes alone inherit them."""


def tell(sender: Connection) -> None:
    """Runs in the process: what it is."""
    os.write(1, b"its output\n")
    told = {
        "parent": os.getppid(),
        "environment": {name: value for name, value in os.environ.items() if name not in OF_THE_TERMINAL},
        "arguments": sys.argv,
        "path": sys.path,
        "num_threads": len(os.listdir("/proc/self/task")),
        "is_imported": IMPORTED in sys.modules,
    }
    sender.send(told)
    raise SystemExit(7)


def play() -> tuple[dict[str, Any], int | None]:
    """Start a process in the same way as SGLang does; what it told, and its exit code."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(sender,))
    process.start()
    sender.close()
    assert receiver.poll(START_S)
    told = receiver.recv()
    process.join(START_S)
    return told, process.exitcode


def test_it_differs_from_a_spawned_one_in_what_is_imported_only(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with environment({"OF_THIS_TEST": "1"}):
        spawned, code = play()
        with preloaded_processes():
            forked, forked_code = play()
    assert (code, forked_code) == (7, 7)
    assert (spawned.pop("is_imported"), forked.pop("is_imported")) == (False, True)
    assert forked == spawned
    assert spawned["parent"] == os.getpid()
    assert spawned["environment"]["OF_THIS_TEST"] == "1"
    assert capfd.readouterr().out.count("its output") == 2


def test_one_that_is_killed_ends_as_a_killed_child_does() -> None:
    with preloaded_processes():
        process = multiprocessing.get_context("spawn").Process(target=signal.pause)
        process.start()
    process.kill()
    process.join(START_S)
    assert process.exitcode == -signal.SIGKILL


def test_another_one_is_started_where_the_first_is_gone() -> None:
    with preloaded_processes():
        pass
    first = preloaded._template
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    with preloaded_processes():
        process = multiprocessing.get_context("spawn").Process(target=int)
        process.start()
        process.join(START_S)
    assert process.exitcode == 0
    assert preloaded._template is not first


def test_a_large_environment_and_the_limits_of_the_process_that_asks_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with environment({f"LARGE_{number}": "ä" * 30_000 for number in range(3)}), preloaded_processes():
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 7, hard))
        try:
            process = multiprocessing.get_context("spawn").Process(target=tell_limits)
            process.start()
            process.join(START_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.exitcode == 0
    assert f"limit {soft - 7}, 90000 letters" in capfd.readouterr().out


def tell_limits() -> None:
    """Runs in the process."""
    letters = sum(len(value) for name, value in os.environ.items() if name.startswith("LARGE_"))
    text = f"limit {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, {letters} letters\n"
    os.write(1, text.encode())


def test_an_executable_of_ones_own_is_not_passed_over() -> None:
    """SGLang binds a process to processors by a script that runs Python."""
    asked = []

    def spawn(path: bytes, args: object, fds: object) -> int:
        asked.append(path)
        return 7

    with preloaded_processes():
        start = forking(preloaded.template(), spawn)
    words = ["-c", "import os", "--multiprocessing-fork"]
    assert start(b"/tmp/bound.sh", words, []) == 7
    assert asked == [b"/tmp/bound.sh"]


def test_where_no_process_can_be_forked_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object) -> int:
        raise ChildProcessError(11, "a second process cannot be forked")

    monkeypatch.setattr(template, "_fork_for", cannot)
    source = template.Template.of_this_process()
    with pytest.raises(RuntimeError, match="a limit of processes or of memory"):
        source.spawn(["-c", "pass"], {}, {})
    os.kill(source.pid, signal.SIGKILL)
    os.waitpid(source.pid, 0)
    with pytest.raises(RuntimeError, match="is gone"):
        source.spawn(["-c", "pass"], {}, {})
