"""All engines of a run: some at a time, each in a process of its own, while the vision tower sees the screenshots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.records import ENGINES, VISION, CellFile
from star_kv_sglang.tools.eval.suite.served import device, engine_dtype
from star_kv_sglang.tools.eval.suite.variants import Variant, cells_of
from star_kv_sglang.tools.eval.suite.vision import see_all
from star_kv_sglang.tools.eval.suite.worker import Spec, Step
from star_kv_sglang.tools.rollout.trajectory import Trajectory

_WORKER = (sys.executable, "-m", "star_kv_sglang.tools.eval.suite.worker")
_LAST_WORDS = 30


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        model: the checkpoint.
        questions: the trajectory file.
        folder: of the results.
        variants: one engine each, in the order of their starts.
        budgets, protocols: the cells of each, the important ones first.
        first: how many trajectories every cell gets before any gets more.
        jobs: engines at a time.
        at_a_time: trajectories in play in one engine.
        traced: how many trajectories of each cell are traced.
        max_seconds: no trajectory is begun later than this; None for no limit.
    """

    model: Path
    questions: Path
    folder: Path
    variants: tuple[Variant, ...]
    budgets: tuple[float, ...]
    protocols: tuple[Protocol, ...]
    first: int
    jobs: int
    at_a_time: int
    traced: int
    max_seconds: float | None


def steps_of(plan: Plan, variant: Variant, trajectories: Sequence[int]) -> tuple[Step, ...]:
    """A variant's steps: the first trajectories in all cells, then the others, cell by cell."""
    cells = cells_of(variant, plan.budgets, plan.protocols)
    first, rest = tuple(trajectories[: plan.first]), tuple(trajectories[plan.first :])
    steps = [Step(cell, first) for cell in cells]
    return tuple(steps + ([Step(cell, rest) for cell in cells] if rest else []))


def visible_gpus() -> list[str]:
    """Names of the GPUs that engines are spread over, as CUDA_VISIBLE_DEVICES takes them; none on a CPU."""
    if device() == "cpu":
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return chosen.split(",") if chosen else [str(index) for index in range(torch.cuda.device_count())]


def worker_environment(given: Mapping[str, str], jobs: int, gpu: str | None) -> dict[str, str]:
    """Environment of an engine that shares the machine.

    Without a limit each engine computes with a thread on every processor, and all of them wait for each other.

    Args:
        given: this process's; what it says of threads stays.
        jobs: engines at a time.
        gpu: the engine's, as CUDA_VISIBLE_DEVICES takes it; None for the CPU.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    chosen = {"OMP_NUM_THREADS": str(threads), **given}
    return chosen if gpu is None else {**chosen, "CUDA_VISIBLE_DEVICES": gpu}


class Conductor:
    """Runs the engines of a plan.

    Args:
        plan: what to do.
        trajectories: of the plan's questions.
        on_played: told a cell's name, right answers and questions after each trajectory.
        on_note: told what else is worth a line.
    """

    def __init__(
        self,
        plan: Plan,
        trajectories: Sequence[Trajectory],
        on_played: Callable[[str, int, int], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._trajectories = trajectories
        self._on_played = on_played
        self._on_note = on_note
        self._lock = threading.Lock()
        self._ended = False
        self._running: list[subprocess.Popen[str]] = []
        self._failures: list[str] = []
        self._deadline = None if plan.max_seconds is None else time.time() + plan.max_seconds

    def run(self) -> None:
        """Runs every engine; what is complete is passed over.

        Raises:
            EvalError: an engine failed; the message has its last words. The others' results are kept.
        """
        waiting = [variant for variant in self._plan.variants if not self._is_complete(variant)]
        gpus = visible_gpus()
        homes = [gpus[job % len(gpus)] if gpus else None for job in range(self._plan.jobs)]
        workers = [threading.Thread(target=self._work, args=(waiting, home)) for home in homes]
        with self._ending():
            for worker in workers:
                worker.start()
            for done in self._seen():
                if done == len(self._trajectories):
                    self._on_note(f"{done} trajectories seen by the vision tower")
            for worker in workers:
                worker.join()
        if self._failures:
            raise EvalError("\n\n".join(self._failures))

    def _seen(self) -> Iterator[int]:
        folder = self._plan.folder / VISION
        return see_all(self._plan.model, self._trajectories, folder, dtype=engine_dtype(), device=device())

    def _is_complete(self, variant: Variant) -> bool:
        wanted = {trajectory.id for trajectory in self._trajectories}
        cells = cells_of(variant, self._plan.budgets, self._plan.protocols)
        return all(wanted <= CellFile(self._plan.folder, cell).done for cell in cells)

    def _work(self, waiting: list[Variant], gpu: str | None) -> None:
        """One engine after the other on a GPU until none waits or time is up."""
        while True:
            with self._lock:
                late = self._deadline is not None and time.time() > self._deadline
                if not waiting or late or self._ended:
                    return
                variant = waiting.pop(0)
            self._run_one(variant, gpu)

    def _run_one(self, variant: Variant, gpu: str | None) -> None:
        numbers = [trajectory.id for trajectory in self._trajectories]
        spec = Spec(
            str(self._plan.model),
            str(self._plan.questions),
            str(self._plan.folder),
            variant,
            steps_of(self._plan, variant, numbers),
            self._deadline,
            self._plan.at_a_time,
            frozenset(numbers[: self._plan.traced]),
        )
        base = self._plan.folder / ENGINES / variant.name
        spec_file, log = base.parent / f"{variant.name}.spec.json", base.parent / f"{variant.name}.log"
        spec_file.write_text(spec.to_json(), encoding="utf-8")
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [*_WORKER, str(spec_file)],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
                env=worker_environment(os.environ, self._plan.jobs, gpu),
                start_new_session=True,
            )
            with self._lock:
                self._running.append(process)
            self._listen(process)
            status = process.wait()
            # What is left of its session: processes that the engine has spawned.
            with self._lock, suppress(ProcessLookupError):
                self._running.remove(process)
                os.killpg(process.pid, signal.SIGKILL)
        self._on_note(f"{variant.name}: {time.monotonic() - started:.0f} s, status {status}")
        if status != 0 and not self._ended:
            words = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_WORDS:]
            self._failures.append(
                f"the engine of {variant.name} ended with status {status}; {log}:\n" + "\n".join(words)
            )

    def _listen(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            raise RuntimeError("the worker was started without a pipe")
        with process.stdout as lines:
            for line in lines:
                # SGLang prints to stdout too.
                if line.startswith('{"cell"'):
                    row = json.loads(line)
                    self._on_played(row["cell"], int(row["right"]), int(row["asked"]))

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Ends all engines when this process is stopped in between, by an error, Ctrl-C or SIGTERM."""

        def leave(number: int, frame: FrameType | None) -> None:
            sys.exit(128 + number)

        before = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        except BaseException:
            self._ended = True
            with self._lock:
                for process in self._running:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


@dataclass
class Tally:
    """Right answers and questions of this session, by cell."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, cell: str, right: int, asked: int) -> None:
        """Counts a trajectory."""
        self.right[cell] = self.right.get(cell, 0) + right
        self.asked[cell] = self.asked.get(cell, 0) + asked
