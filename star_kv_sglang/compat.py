"""Which set-ups work: SGLang's version, its seams, the options and the model; decided before weights load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from star_kv_sglang.errors import SeamMovedError

if TYPE_CHECKING:
    from star_kv_sglang.server_args import StarServerArgs

SUPPORTED_SGLANG = ("0.5.17",)

VISION_MODELS = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
TEXT_MODELS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
ATTENTION_BACKENDS = ("torch_native", "flashinfer")


@dataclass(frozen=True)
class Rule:
    """One combination that is refused: a test on the arguments and the sentence that says why and what to do."""

    applies: Callable[[Any], bool]
    reason: str


FLAG_RULES = (
    Rule(
        lambda a: a.speculative_algorithm is not None,
        "speculative decoding (--speculative-algorithm): drafts read rows that have holes; drop it",
    ),
    Rule(
        lambda a: a.enable_hierarchical_cache,
        "hierarchical cache (--enable-hierarchical-cache): host copies cannot hold pruned nodes; drop it",
    ),
    Rule(lambda a: a.enable_lmcache, "LMCache (--enable-lmcache): it stores whole prefixes; drop it"),
    Rule(lambda a: a.enable_flexkv, "FlexKV (--enable-flexkv): it stores whole prefixes; drop it"),
    Rule(
        lambda a: a.disaggregation_mode != "null",
        "prefill/decode disaggregation (--disaggregation-mode): transfers send whole rows; drop it",
    ),
    Rule(
        lambda a: a.enable_streaming_session,
        "streaming sessions (--enable-streaming-session): they keep rows outside of the tree; drop it",
    ),
    Rule(
        lambda a: a.enable_session_radix_cache,
        "session radix cache (--enable-session-radix-cache): it needs SGLang's own tree; drop it",
    ),
    Rule(
        lambda a: a.pp_size > 1, "pipeline parallelism (--pp-size): the scorer needs all layers in one process; use 1"
    ),
    Rule(
        lambda a: a.tp_size > 1,
        "tensor parallelism (--tp-size): ranks do not share scores yet; use 1 (data parallelism works)",
    ),
    Rule(lambda a: a.dcp_size > 1, "decode context parallelism (--dcp-size): it splits rows by position; use 1"),
    Rule(lambda a: a.disable_radix_cache, "--disable-radix-cache: the policy lives in the radix tree; drop it"),
    Rule(lambda a: a.enable_hisparse, "HiSparse (--enable-hisparse): two policies cannot own one page table; drop it"),
    Rule(lambda a: a.enable_lora or bool(a.lora_paths), "LoRA adapters: not verified with pruned nodes; drop them"),
    Rule(
        lambda a: a.kv_cache_dtype.startswith(("fp8", "fp4", "nvfp4", "mxfp4")),
        "a quantised KV cache (--kv-cache-dtype): the scorer reads keys as floats; use auto",
    ),
    Rule(
        lambda a: a.radix_cache_backend not in (None, "star_kv"),
        "--radix-cache-backend: the policy brings its own tree; drop the flag",
    ),
)


def require_supported_sglang() -> None:
    """Compare the installed SGLang with what this package extends.

    Raises:
        SeamMovedError: Another version, or a seam whose signature differs.
    """
    problems = sglang_problems()
    if problems:
        raise SeamMovedError(problems, SUPPORTED_SGLANG)


def sglang_problems() -> list[str]:
    """One line for each difference between the installed SGLang and the supported one; empty when it fits."""
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return ["sglang is not installed"]
    if version not in SUPPORTED_SGLANG:
        return [f"sglang {version} is installed"]
    from star_kv_sglang.patches.activate import seam_problems

    return seam_problems()


def gpu_is_present() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def reasons_from_flags(args: StarServerArgs) -> list[str]:
    """Reasons that can be seen in the flags alone."""
    return [rule.reason for rule in FLAG_RULES if rule.applies(args)]


def reasons_after_resolution(args: StarServerArgs) -> list[str]:
    """Reasons that show once SGLang has read the model's configuration and resolved its defaults."""
    reasons = []
    backends = sorted({backend for backend in args.get_attention_backends() if backend not in ATTENTION_BACKENDS})
    if backends:
        reasons.append(
            f"attention backend {', '.join(map(str, backends))}: page tables with holes are implemented for "
            f"{', '.join(ATTENTION_BACKENDS)}; use --attention-backend with one of these"
        )
    if args.device == "cpu" and args.page_size not in (None, 1):
        reasons.append(f"--page-size {args.page_size} on a CPU: SGLang's paged allocator needs a GPU; use page size 1")
    model_config = args.get_model_config()
    architectures = list(getattr(model_config.hf_config, "architectures", None) or [])
    if not set(architectures) & set(VISION_MODELS + TEXT_MODELS):
        reasons.append(
            f"model architecture {', '.join(architectures) or 'unknown'}: known are {', '.join(VISION_MODELS)} "
            f"and, without pruning, {', '.join(TEXT_MODELS)}"
        )
    graphs = args.cuda_graph_config.prefill.backend
    if model_config.is_multimodal and graphs != "disabled":
        reasons.append(
            f"prefill CUDA graphs ({graphs}) for a model with vision: not verified with the scorer, which works "
            "between the layers of a prefill; drop --cuda-graph-backend-prefill, decode graphs stay on"
        )
    if model_config.is_hybrid_swa:
        reasons.append("a model with sliding-window layers: positions in a row no longer tell distances after pruning")
    if args.use_mla_backend():
        reasons.append("a model with multi-head latent attention (MLA): it stores no keys per head")
    return reasons
