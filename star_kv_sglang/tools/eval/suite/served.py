"""An engine of this process, asked with screenshots that the vision tower has seen already.

Only the engine's public calls are used, but for two: its image processor, as requests are handed the tower's output and
each request's screenshots get a hash of its own conversation, so that nothing is shared in the cache beyond it; and the
call that empties the cache, whose public form does not wait.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.suite.vision import SeenScreen

MAX_NEW_TOKENS: Final = 2
"""Every right reply of the small worlds has two words."""

MAX_IN_FLIGHT: Final = 64
"""Requests that the engine is given at a time: each that waits is compared with each that is planned."""

_IDLE_TIMEOUT_S: Final = 30

_GPU_ARGUMENTS: Final[dict[str, Any]] = {
    "dtype": "bfloat16",
    "attention_backend": "flashinfer",
    "mm_attention_backend": "triton_attn",
    "sampling_backend": "pytorch",
    "mm_feature_transport": "cpu",
    # A reply has one decode step: capturing graphs would take longer than they save.
    "disable_cuda_graph": True,
    "max_total_tokens": 240_000,
    "max_running_requests": 256,
}
_CPU_ARGUMENTS: Final[dict[str, Any]] = {
    "dtype": "float32",
    "max_total_tokens": 60_000,
    "max_running_requests": 64,
    "enable_precise_embedding_interpolation": True,
}
_ARGUMENTS: Final[dict[str, Any]] = {
    "grammar_backend": "none",
    "log_level": "error",
    "random_seed": 1,
    "skip_server_warmup": True,
    # No prompt is cut: a screenshot that is computed in two parts is scored in two parts.
    "chunked_prefill_size": -1,
    "max_prefill_tokens": 16_384,
    # Several engines share a device; the pool's size is max_total_tokens, this only has to allow it.
    "mem_fraction_static": 0.5,
}


def device() -> str:
    """Where the engines run."""
    return "cuda" if cpu_mode.is_gpu_present() else "cpu"


def engine_dtype() -> torch.dtype:
    """What the engines compute in."""
    return torch.bfloat16 if device() == "cuda" else torch.float32


def versions() -> str:
    """What the engines are made of."""
    if device() == "cpu":
        cpu_mode.enable()
    import sglang

    return f"SGLang {sglang.__version__}, torch {torch.__version__}"


def start_engine(model: Path, **arguments: Any) -> Any:
    """An ``sglang.Engine`` on the GPU if there is one, else on the CPU; ``arguments`` win."""
    if device() == "cpu":
        cpu_mode.enable()
    import sglang

    chosen = {"model_path": str(model), **_ARGUMENTS}
    if device() == "cuda":
        return sglang.Engine(**{**chosen, **_GPU_ARGUMENTS, **arguments})
    return sglang.Engine(**cpu_mode.cpu_engine_kwargs(**{**chosen, **_CPU_ARGUMENTS, **arguments}))


def empty_cache(engine: Any) -> None:
    """Empties an engine's cache when its last request has left the scheduler, which is a step after its answer.

    Raises:
        EvalError: requests were still running after half a minute.
    """
    result = engine.loop.run_until_complete(engine.tokenizer_manager.flush_cache(timeout_s=_IDLE_TIMEOUT_S))
    if not result.success:
        raise EvalError(f"the cache was not emptied, as requests ran for {_IDLE_TIMEOUT_S} s: {result.message}")


@dataclass(frozen=True, slots=True)
class Shown:
    """A screenshot of a request.

    Attributes:
        screen: what the tower made of it.
        conversation: requests of another conversation share nothing with this one.
        index: which screenshot of the conversation.
    """

    screen: SeenScreen
    conversation: str
    index: int

    @property
    def hash(self) -> int:
        """63 bits of the conversation and the index."""
        digest = hashlib.blake2b(f"{self.conversation}/{self.index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class Reply:
    """What the engine answered.

    Attributes:
        text: the words.
        cached: prompt tokens found in the cache.
        prompt: prompt tokens.
    """

    text: str
    cached: int
    prompt: int


class SuiteEngine:
    """An engine and the calls that the suite needs.

    Args:
        engine: a running ``sglang.Engine``.
        sample_png: any screenshot; the engine's own processor reads it once, to learn what its output looks like.
    """

    def __init__(self, engine: Any, sample_png: bytes) -> None:
        self._engine = engine
        manager = engine.tokenizer_manager
        self._stock: Any = manager.mm_processor
        self._sample = sample_png
        self._pattern: Any = None
        self._free = asyncio.Semaphore(MAX_IN_FLIGHT)
        manager.mm_processor = self

    def run(self, coroutine: Any) -> Any:
        """Runs a coroutine on the engine's event loop."""
        return self._engine.loop.run_until_complete(coroutine)

    def close(self) -> None:
        """Ends the engine."""
        self._engine.shutdown()

    def flush(self) -> None:
        """Empties the cache; raises as `empty_cache`."""
        empty_cache(self._engine)

    def counters(self) -> Mapping[str, int]:
        """What the policy has counted; nothing under the full cache."""
        states = self._engine.get_server_info()["internal_states"]
        found: Mapping[str, int] = states[0].get("star_kv") or {}
        return found

    async def ask(self, ids: Sequence[int], shown: Sequence[Shown], rid: str, custom: Mapping[str, Any]) -> Reply:
        """A greedy reply of two words.

        Args:
            ids: the prompt, one image mark for each screenshot.
            shown: the screenshots.
            rid: the request's name.
            custom: the request's ``custom_params``.
        """
        sampling = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "custom_params": dict(custom)}
        async with self._free:
            raw = await self._engine.async_generate(
                input_ids=list(ids), image_data=list(shown), sampling_params=sampling, rid=rid
            )
        meta = raw["meta_info"]
        return Reply(raw["text"].strip(), int(meta["cached_tokens"]), int(meta["prompt_tokens"]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    async def process_mm_data_async(
        self, image_data: Sequence[Shown], audio_data: Any, input_text: Sequence[int], request_obj: Any, **other: Any
    ) -> Any:
        """What the engine's processor would return, with the tower's output instead of pixels."""
        del audio_data
        if self._pattern is None:
            self._pattern = await self._stock.process_mm_data_async(
                image_data=[self._sample],
                audio_data=None,
                input_text="<|vision_start|><|image_pad|><|vision_end|>",
                request_obj=request_obj,
                **other,
            )
        mark = self._pattern.im_token_id
        ids: list[int] = []
        items = []
        rest = iter(image_data)
        for token in input_text:
            if token != mark:
                ids.append(token)
                continue
            shown = next(rest)
            start = len(ids)
            ids.extend([mark] * len(shown.screen.embedding))
            items.append(self._item(shown, start, len(ids) - 1))
        padded = list(ids)
        for item in items:
            ((first, last),) = item.offsets
            padded[first : last + 1] = item.padding_sequence(last - first + 1)
        positions, delta = self._stock.compute_mrope_positions(ids, items)
        answer = copy.copy(self._pattern)
        answer.mm_items, answer.input_ids, answer.padded_input_ids = items, ids, padded
        answer.mrope_positions, answer.mrope_position_delta = positions, delta
        return answer

    def _item(self, shown: Shown, first: int, last: int) -> Any:
        item = copy.copy(self._pattern.mm_items[0])
        item.feature = None
        item.precomputed_embeddings = shown.screen.embedding
        item.offsets = [(first, last)]
        item.model_specific_data = {"image_grid_thw": shown.screen.grid}
        item.set_hash(shown.hash)
        return item
