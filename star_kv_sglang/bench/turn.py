"""What the policy adds to one turn: GPU time of its stages inside the prefill, from a profile of the real engine."""

from __future__ import annotations

import csv
import gzip
import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from star_kv_sglang.bench.serve.checkpoint import SHAPES, write_checkpoint
from star_kv_sglang.bench.serve.conversation import Conversation
from star_kv_sglang.bench.serve.machine import describe
from star_kv_sglang.bench.serve.screens import write_screens
from star_kv_sglang.engine.ranges import PREFIX

SCREEN_SIZE = (1920, 1080)


@dataclass(frozen=True)
class Stage:
    """One stage of the policy in the profiled turn.

    Attributes:
        name: Its range in the profile.
        num_ranges: How often it ran (per layer for what runs in every layer).
        gpu_us: Time of its kernels and copies, microseconds.
        elapsed_us: From the first to the last kernel of each range, waiting for launches included; a profiler makes
            launches slower than they are.
        share: ``gpu_us`` of the GPU time of the rest of the turn.
    """

    name: str
    num_ranges: int
    gpu_us: float
    elapsed_us: float
    share: float


@dataclass(frozen=True)
class TurnProfile:
    """The profiled turn.

    Attributes:
        kernel_us: GPU time of all kernels and copies of the turn, microseconds.
        stages: The policy's stages.
    """

    kernel_us: float
    stages: tuple[Stage, ...]

    @property
    def policy_share(self) -> float:
        """GPU time of all stages over the GPU time of the rest of the turn."""
        return sum(stage.share for stage in self.stages)


def read_profile(events: Iterable[dict[str, Any]]) -> TurnProfile:
    """Sum a profile's kernels and the policy's ranges.

    Args:
        events: ``traceEvents`` of a torch profile of the scheduler process.
    """
    work: list[tuple[float, float]] = []
    ranges: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        category = event.get("cat")
        if category in ("kernel", "gpu_memcpy", "gpu_memset"):
            work.append((float(event["ts"]), float(event["dur"])))
        elif category == "gpu_user_annotation" and event["name"].startswith(PREFIX):
            span = (float(event["ts"]), float(event["dur"]))
            ranges.setdefault(event["name"].removeprefix(PREFIX), []).append(span)
    work.sort()
    starts = [start for start, _ in work]
    busy = list(accumulate((duration for _, duration in work), initial=0.0))

    def inside(start: float, duration: float) -> float:
        return busy[bisect_right(starts, start + duration)] - busy[bisect_left(starts, start)]

    gpu = {name: sum(inside(*span) for span in spans) for name, spans in ranges.items()}
    rest = max(busy[-1] - sum(gpu.values()), 1e-9)
    stages = tuple(
        Stage(name, len(spans), gpu[name], sum(duration for _, duration in spans), gpu[name] / rest)
        for name, spans in sorted(ranges.items())
    )
    return TurnProfile(busy[-1], stages)


def profile_turn(
    folder: Path, *, policy: str = "star", num_cached_screens: int = 4, budget: float = 0.2
) -> TurnProfile:
    """Run a branch on a 7B-shaped model and profile the prefill of its next turn.

    The turns before are pinned, so that the new screenshot meets all of their tokens in the cache.

    Args:
        folder: Receives the model, the screenshots and the profile.
        policy: The KV policy.
        num_cached_screens: Screenshots in the history.
        budget: Of the policy.
    """
    import sglang

    model = write_checkpoint(folder / "model", SHAPES["7b"])
    screens = write_screens(folder / "screens", SCREEN_SIZE)
    profiles = folder / "profile"
    engine = sglang.Engine(
        model_path=str(model),
        load_format="dummy",
        attention_backend="flashinfer",
        mm_attention_backend="triton_attn",
        sampling_backend="pytorch",
        mm_feature_transport="cpu",
        cuda_graph_bs_decode=[1],
        max_total_tokens=100_000,
        chunked_prefill_size=16_384,
        kv_policy=policy,
        kv_budget=budget,
    )
    try:
        for number in (0, 1):  # the first branch warms up everything that is compiled late
            talk = Conversation(f"<|im_start|> system w{300 + number} <|im_end|>")
            for index in range(num_cached_screens):
                talk = talk.shown(screens[index])
                talk = talk.answered(_ask(engine, talk, share=True))
            talk = talk.shown(screens[num_cached_screens])
            if number == 1:
                # The ranges need the CPU side. SGLang's defaults, Python stacks and shapes of all operators, take
                # minutes to write for a turn of this size and slow its launches down.
                engine.start_profile(
                    output_dir=str(profiles), activities=["CPU", "GPU"], with_stack=False, record_shapes=False
                )
            _ask(engine, talk, share=False)
        engine.stop_profile()
    finally:
        engine.shutdown()
    return read_profile(_load(_wait_for_trace(profiles))["traceEvents"])


def append_csv(path: Path, policy: str, profile: TurnProfile) -> None:
    """Append one row for each stage, with the machine's name and versions."""
    machine = asdict(describe("7b"))
    rows = [
        {**machine, "policy": policy, "turn_kernel_us": round(profile.kernel_us, 1), **asdict(stage)}
        for stage in profile.stages
    ]
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def _ask(engine: Any, talk: Conversation, *, share: bool) -> str:
    sampling = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True, "custom_params": {"kv_share": share}}
    answer: str = engine.generate(
        prompt=talk.text, image_data=[str(screen) for screen in talk.screens], sampling_params=sampling
    )["text"]
    return answer


def _wait_for_trace(folder: Path, *, timeout_s: float = 60) -> Path:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        traces = sorted(folder.rglob("*.trace.json.gz"))
        if traces:
            return traces[0]
        time.sleep(0.5)
    raise TimeoutError(f"SGLang wrote no profile to {folder} within {timeout_s:.0f} s")


def _load(path: Path) -> dict[str, Any]:
    for _ in range(20):
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                content: dict[str, Any] = json.load(file)
                return content
        except (EOFError, json.JSONDecodeError):
            time.sleep(1)  # still being written
    raise ValueError(f"{path} is not a complete profile")
