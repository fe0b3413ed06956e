"""Reading a profile of the scheduler: GPU time of the policy's stages, and calls in which the host waits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from star_kv_sglang.engine.ranges import PREFIX

_SYNCHRONISING: Final = {
    "cudaStreamSynchronize": "stream",
    "cudaDeviceSynchronize": "device",
    "cudaEventSynchronize": "event",
}
_COPYING: Final = ("cudaMemcpy", "cudaMemcpyAsync")
_PREFILL, _DECODE = "step[EXTEND", "step[DECODE"
"""SGLang's own ranges around a forward pass."""

Span = tuple[float, float]
"""Start and duration, microseconds."""


@dataclass(frozen=True)
class Waits:
    """CUDA runtime calls in which the host waits for the device, and copies to the host.

    Attributes:
        stream: ``cudaStreamSynchronize``.
        device: ``cudaDeviceSynchronize``; a profiler makes one when it stops.
        event: ``cudaEventSynchronize``.
        copies: Copies to the host that wait: of ``cudaMemcpy`` all, of ``cudaMemcpyAsync`` those to pageable memory.
        queued_copies: Copies to the host, to pinned memory, that do not wait.
    """

    stream: int = 0
    device: int = 0
    event: int = 0
    copies: int = 0
    queued_copies: int = 0

    @classmethod
    def of(cls, kinds: Iterable[str]) -> Waits:
        """Calls counted by the names of the attributes."""
        return cls(**Counter(kinds))

    @property
    def total(self) -> int:
        """Calls that wait. Reading a tensor may be two: the copy, and the stream behind it."""
        return self.stream + self.device + self.event + self.copies


@dataclass(frozen=True)
class Stage:
    """One stage of the policy in a profile.

    Attributes:
        name: Its range in the profile.
        num_ranges: How often it ran (per layer for what runs in every layer).
        gpu_us: Time of its kernels and copies, microseconds.
        elapsed_us: From the first to the last kernel of each range, waiting for launches included; a profiler makes
            launches slower than they are.
        share: ``gpu_us`` of the GPU time of the rest of the profile.
        waits: Calls inside of its ranges.
    """

    name: str
    num_ranges: int
    gpu_us: float
    elapsed_us: float
    share: float
    waits: Waits


@dataclass(frozen=True)
class Profile:
    """A profiled turn, or some decode steps.

    Attributes:
        kernel_us: GPU time of all kernels and copies, microseconds.
        num_prefills: Forward passes that prefill.
        num_decodes: Decode steps.
        waits: All calls, SGLang's included.
        stages: The policy's stages.
    """

    kernel_us: float
    num_prefills: int
    num_decodes: int
    waits: Waits
    stages: tuple[Stage, ...]

    @property
    def policy_share(self) -> float:
        """GPU time of all stages over the GPU time of the rest."""
        return sum(stage.share for stage in self.stages)

    @property
    def policy_waits(self) -> int:
        """Calls of all stages that wait."""
        return sum(stage.waits.total for stage in self.stages)


@dataclass
class _Events:
    """A profile's events, sorted out.

    Attributes:
        work: Kernels, copies and fills of the device.
        copies: Name of each copy by the number that it shares with the call that queued it.
        on_device, on_host: The policy's ranges by name.
        calls: Start, name and number of each call that may wait.
        steps: Forward passes by kind.
    """

    work: list[Span] = field(default_factory=list)
    copies: dict[int, str] = field(default_factory=dict)
    on_device: dict[str, list[Span]] = field(default_factory=dict)
    on_host: dict[str, list[Span]] = field(default_factory=dict)
    calls: list[tuple[float, str, int]] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)

    def add(self, event: dict[str, Any]) -> None:
        """Take what is of interest in an event."""
        category = event.get("cat")
        if category in ("kernel", "gpu_memcpy", "gpu_memset"):
            self.work.append(_span(event))
            if category == "gpu_memcpy":
                self.copies[_correlation(event)] = event["name"]
        elif category == "cuda_runtime" and (event["name"] in _SYNCHRONISING or event["name"] in _COPYING):
            self.calls.append((float(event["ts"]), event["name"], _correlation(event)))
        elif category in ("user_annotation", "gpu_user_annotation"):
            self._add_range(event, self.on_host if category == "user_annotation" else self.on_device)

    def _add_range(self, event: dict[str, Any], ranges: dict[str, list[Span]]) -> None:
        name: str = event["name"]
        if name.startswith(PREFIX):
            ranges.setdefault(name.removeprefix(PREFIX), []).append(_span(event))
        elif ranges is self.on_host:
            self.steps.update(kind for kind in (_PREFILL, _DECODE) if name.startswith(kind))

    def waits(self) -> list[tuple[float, str]]:
        """When each call of interest began, and the name of its kind in `Waits`."""
        kinds = ((start, self._kind(name, number)) for start, name, number in self.calls)
        return [(start, kind) for start, kind in kinds if kind]

    def _kind(self, call: str, number: int) -> str:
        if call in _SYNCHRONISING:
            return _SYNCHRONISING[call]
        copy = self.copies.get(number, "")
        if "DtoH" not in copy:
            return ""
        return "queued_copies" if call == "cudaMemcpyAsync" and "Pinned" in copy else "copies"


def read_profile(events: Iterable[dict[str, Any]]) -> Profile:
    """Sum a profile's kernels, the policy's ranges and the calls that wait.

    Args:
        events: ``traceEvents`` of a torch profile of the scheduler process.
    """
    found = _Events()
    for event in events:
        found.add(event)
    work = sorted(found.work)
    starts = [start for start, _ in work]
    busy = list(accumulate((duration for _, duration in work), initial=0.0))

    def inside(start: float, duration: float) -> float:
        return busy[bisect_right(starts, start + duration)] - busy[bisect_left(starts, start)]

    names = sorted(found.on_device.keys() | found.on_host.keys())
    gpu = {name: sum(inside(*span) for span in found.on_device.get(name, ())) for name in names}
    rest = max(busy[-1] - sum(gpu.values()), 1e-9)
    waits = found.waits()
    stages = []
    for name in names:
        on_device, on_host = found.on_device.get(name, []), found.on_host.get(name, [])
        elapsed = sum(duration for _, duration in on_device)
        count = max(len(on_device), len(on_host))
        own = Waits.of(kind for start, kind in waits if any(s <= start <= s + d for s, d in on_host))
        stages.append(Stage(name, count, gpu[name], elapsed, gpu[name] / rest, own))
    all_waits = Waits.of(kind for _, kind in waits)
    return Profile(busy[-1], found.steps[_PREFILL], found.steps[_DECODE], all_waits, tuple(stages))


def _span(event: dict[str, Any]) -> Span:
    return float(event["ts"]), float(event["dur"])


def _correlation(event: dict[str, Any]) -> int:
    return int(event.get("args", {}).get("correlation", -1))
