"""What the policy adds to one turn and to decode steps after it, from profiles of the real engine."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from star_kv_sglang.tools.bench.append import append_rows
from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, write_checkpoint
from star_kv_sglang.tools.bench.serve.conversation import Conversation
from star_kv_sglang.tools.bench.serve.machine import describe
from star_kv_sglang.tools.bench.serve.results import Machine
from star_kv_sglang.tools.bench.serve.screens import write_screens
from star_kv_sglang.tools.bench.turn_profile import Profile, Waits, read_profile
from star_kv_sglang.tools.measuring import POLICY_CONFIG

SCREEN_SIZE = (1920, 1080)
FULL: Final = "full"
"""The policy that changes nothing: stock SGLang."""
EVERYTHING: Final = "everything"
"""Name of the CSV's row for a whole profile."""

GPU_ENGINE: Final[Mapping[str, Any]] = {
    "attention_backend": "flashinfer",
    "mm_attention_backend": "triton_attn",
    "sampling_backend": "pytorch",
    "mm_feature_transport": "cpu",
    "cuda_graph_bs_decode": [1],
    "max_total_tokens": 100_000,
    "chunked_prefill_size": 16_384,
}
"""The same engine for every policy."""

_SPARE_STEPS = 192
"""Tokens that a profiled answer is longer than its profile: steps go on while the profiler starts and stops."""


@dataclass(frozen=True)
class Case:
    """What is profiled.

    Attributes:
        policy: The KV policy.
        budget: Of a policy that prunes.
        num_cached_screens: Screenshots in the history.
        num_steps: About so many decode steps.
        shape: Of the model.
        screen_size: Width and height, pixels.
    """

    policy: str = "star"
    budget: float = 0.2
    num_cached_screens: int = 4
    num_steps: int = 64
    shape: str = "7b"
    screen_size: tuple[int, int] = SCREEN_SIZE

    @property
    def flags(self) -> dict[str, Any]:
        """The policy's arguments of ``sglang.Engine``."""
        if self.policy == FULL:
            return {"kv_policy": FULL}
        config = json.dumps(POLICY_CONFIG)
        return {"kv_policy": self.policy, "kv_budget": self.budget, "kv_policy_config": config}


@dataclass(frozen=True)
class TurnProfile:
    """Both profiles of an engine.

    Attributes:
        turn: The prefill of a turn; a decode step or two follow.
        decode: Decode steps over a history that was pruned.
    """

    turn: Profile
    decode: Profile

    @property
    def parts(self) -> dict[str, Profile]:
        """Both by name."""
        return {"turn": self.turn, "decode": self.decode}


def profile_turn(folder: Path, case: Case, engine_arguments: Mapping[str, Any] = GPU_ENGINE) -> TurnProfile:
    """Run a branch on a model with random weights; profile the prefill of its next turn, then another branch's answer.

    The turns before are pinned, so that the new screenshot meets all of their tokens in the cache. The branch whose
    answer is profiled sends its whole history at once, and all of it is pruned.

    Args:
        folder: Receives the model, the screenshots and the profiles.
        case: What is profiled.
        engine_arguments: Of the engine, beside the model and the policy.
    """
    import sglang

    model = write_checkpoint(folder / "model", SHAPES[case.shape])
    screens = write_screens(folder / "screens", case.screen_size)
    engine = sglang.Engine(model_path=str(model), load_format="dummy", **engine_arguments, **case.flags)
    try:
        for number in (0, 1):  # the first branch warms up everything that is compiled late
            talk = Conversation(f"<|im_start|> system w{300 + number} <|im_end|>")
            for index in range(case.num_cached_screens):
                talk = talk.shown(screens[index])
                talk = talk.answered(_ask(engine, talk, share=True))
            talk = talk.shown(screens[case.num_cached_screens])
            if number == 1:
                _start_profile(engine, folder / "turn")
            _ask(engine, talk, share=False)
        engine.stop_profile()
        whole = Conversation("<|im_start|> system w302 <|im_end|>")
        for screen in screens[: case.num_cached_screens + 1]:
            whole = whole.shown(screen)
        _profile_answer(engine, whole, case.num_steps, folder / "decode")
    finally:
        engine.shutdown()
    return TurnProfile(_read(folder / "turn"), _read(folder / "decode"))


def append_csv(path: Path, case: Case, profile: TurnProfile) -> None:
    """Append a row for each stage of both profiles and one for each whole profile, with the machine's name."""
    machine = asdict(describe(case.shape))
    append_rows(path, [{**machine, **row} for row in rows_of(case, profile)])


def columns() -> list[str]:
    """What `append_csv` writes."""
    nothing = Profile(0.0, 0, 0, Waits(), ())
    return [*(one.name for one in fields(Machine)), *rows_of(Case(), TurnProfile(nothing, nothing))[0]]


def rows_of(case: Case, profile: TurnProfile) -> list[dict[str, Any]]:
    """The CSV's rows without the machine; those called ``everything`` count all calls, SGLang's included."""
    rows = []
    for part, one in profile.parts.items():
        passes = {"num_prefills": one.num_prefills, "num_decodes": one.num_decodes}
        head = {"policy": case.policy, "part": part, **passes, "kernel_us": round(one.kernel_us, 1)}
        for stage in one.stages:
            times = {"gpu_us": round(stage.gpu_us, 3), "elapsed_us": round(stage.elapsed_us, 3), "share": stage.share}
            rows.append({**head, "name": stage.name, "num_ranges": stage.num_ranges, **times, **_cells(stage.waits)})
        blank = {"num_ranges": "", "gpu_us": "", "elapsed_us": "", "share": ""}
        rows.append({**head, "name": EVERYTHING, **blank, **_cells(one.waits)})
    return rows


def _cells(waits: Waits) -> dict[str, int]:
    return {
        "stream_waits": waits.stream,
        "device_waits": waits.device,
        "event_waits": waits.event,
        "copy_waits": waits.copies,
        "queued_copies": waits.queued_copies,
    }


def _ask(engine: Any, talk: Conversation, *, share: bool) -> str:
    answer: str = engine.generate(**_request(talk, share=share, num_tokens=2))["text"]
    return answer


def _profile_answer(engine: Any, talk: Conversation, num_steps: int, folder: Path) -> None:
    """Profile decode steps in the middle of an answer."""
    chunks: Iterator[dict[str, Any]] = engine.generate(
        **_request(talk, share=False, num_tokens=num_steps + _SPARE_STEPS), stream=True
    )
    first = _num_tokens(next(chunks))  # the prompt is pruned before its first decode step
    _start_profile(engine, folder)
    for chunk in chunks:
        if _num_tokens(chunk) >= first + num_steps:
            break
    engine.stop_profile()
    for _ in chunks:
        pass


def _request(talk: Conversation, *, share: bool, num_tokens: int) -> dict[str, Any]:
    sampling = {
        "temperature": 0,
        "max_new_tokens": num_tokens,
        "ignore_eos": True,
        "custom_params": {"kv_share": share},
    }
    images = [str(screen) for screen in talk.screens]
    return {"prompt": talk.text, "image_data": images, "sampling_params": sampling}


def _num_tokens(chunk: dict[str, Any]) -> int:
    return int(chunk["meta_info"]["completion_tokens"])


def _start_profile(engine: Any, folder: Path) -> None:
    # The ranges need the CPU side. SGLang's defaults, Python stacks and shapes of all operators, take minutes to write
    # for a turn of this size and slow its launches down.
    engine.start_profile(output_dir=str(folder), activities=["CPU", "GPU"], with_stack=False, record_shapes=False)


def _read(folder: Path) -> Profile:
    return read_profile(_load(_wait_for_trace(folder))["traceEvents"])


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
