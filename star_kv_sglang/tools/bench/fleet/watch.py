"""What a server takes of the machine while the fleet runs: processor seconds by process, and the GPU's busy time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import psutil

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.tools.bench.serve.machine import first_gpu

_PERIOD_S = 0.1
_ROLES = ("scheduler", "detokenizer")


@dataclass
class Watch:
    """A context manager; its figures are there when it has ended.

    Attributes:
        port: The server listens there.
        cpu_s: Processor seconds by role: ``api`` is the process that answers clients with its helpers.
        gpu_busy: Share of the time in which a kernel ran, by NVML's samples; None without a GPU.
        wall_s: Seconds that were watched.
    """

    port: int
    cpu_s: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None
    wall_s: float = 0.0

    def __enter__(self) -> Watch:
        self._before = _cpu_seconds(self.port)
        self._started = time.perf_counter()
        self._done = threading.Event()
        self._samples: list[int] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if is_gpu_present():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._started
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        after = _cpu_seconds(self.port)
        self.cpu_s = {role: seconds - self._before.get(role, 0.0) for role, seconds in after.items()}
        if self._samples:
            self.gpu_busy = sum(self._samples) / len(self._samples) / 100

    def _sample(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        name = first_gpu()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        while not self._done.wait(_PERIOD_S):
            self._samples.append(int(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu))


def _cpu_seconds(port: int) -> dict[str, float]:
    """Processor seconds of the server on a port so far, by role."""
    totals: dict[str, float] = {}
    for process in _processes(port):
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        role = next((role for role in _ROLES if f"sglang::{role[:8]}" in words), "api")
        totals[role] = totals.get(role, 0.0) + times.user + times.system
    return totals


def _processes(port: int) -> list[psutil.Process]:
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            server = psutil.Process(connection.pid)
            return [server, *server.children(recursive=True)]
    return []
