"""Which set-ups work: SGLang's version, its seams, the options and the model; decided before weights load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_kv_sglang import __version__
from star_kv_sglang.errors import SeamMovedError
from star_kv_sglang.request_params import problems_of_preferences

if TYPE_CHECKING:
    from star_kv_sglang.patches.seam import Seam
    from star_kv_sglang.server_args import StarServerArgs

SUPPORTED_SGLANG = ("0.5.23",)

VISION_MODELS = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
TEXT_MODELS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
ATTENTION_BACKENDS = ("torch_native", "flashinfer")
CPU_SWITCH = "SGLANG_USE_CPU_ENGINE"
"""Environment variable of SGLang's CPU engine; it is read while SGLang is imported."""
CHECKED_SGLANG = "STAR_KV_CHECKED_SGLANG"
"""Environment variable that names an SGLang which the process that started this one has compared."""
HTTP_APP = "star_kv_sglang.patches.http_app:app"
"""What several processes that answer clients import: SGLang's app, with the checks of requests."""


@dataclass(frozen=True)
class Rule:
    """One combination that is refused.

    Attributes:
        fields: Arguments of SGLang that it looks at.
        applies: Tells from their values, in this order, whether it is refused.
        reason: Says what is refused, why, and what to do.
    """

    fields: tuple[str, ...]
    applies: Callable[..., bool]
    reason: str


def _is_set(field: str, reason: str) -> Rule:
    return Rule((field,), bool, reason)


def _above_one(field: str, reason: str) -> Rule:
    return Rule((field,), lambda size: size > 1, reason)


FLAG_RULES = (
    Rule(
        ("speculative_algorithm",),
        lambda algorithm: algorithm is not None,
        "speculative decoding (--speculative-algorithm): drafts read rows that have holes; drop it",
    ),
    _is_set(
        "enable_hierarchical_cache",
        "hierarchical cache (--enable-hierarchical-cache): host copies cannot hold pruned nodes; drop it",
    ),
    _is_set("enable_lmcache", "LMCache (--enable-lmcache): it stores whole prefixes; drop it"),
    _is_set("enable_flexkv", "FlexKV (--enable-flexkv): it stores whole prefixes; drop it"),
    _is_set(
        "enable_unified_cache_external_linker",
        "an external KV store (--enable-unified-cache-external-linker): it stores whole prefixes of SGLang's own tree; "
        "drop it",
    ),
    Rule(
        ("disaggregation_mode",),
        lambda mode: mode != "null",
        "prefill/decode disaggregation (--disaggregation-mode): transfers send whole rows; drop it",
    ),
    _is_set(
        "enable_streaming_session",
        "streaming sessions (--enable-streaming-session): they keep rows outside of the tree; drop it",
    ),
    _is_set(
        "enable_session_radix_cache",
        "session radix cache (--enable-session-radix-cache): it needs SGLang's own tree; drop it",
    ),
    Rule(
        ("radix_eviction_policy",),
        lambda policy: policy == "tlru",
        "--radix-eviction-policy tlru: it needs SGLang's own tree; use lru, lfu, slru or priority",
    ),
    _above_one("pp_size", "pipeline parallelism (--pp-size): the scorer needs all layers in one process; use 1"),
    Rule(
        ("tp_size", "nnodes"),
        lambda size, hosts: size > 1 and hosts > 1,
        "tensor parallelism over several hosts (--tp-size with --nnodes): never verified; use one host",
    ),
    _above_one(
        "attn_dp_size",
        "data-parallel attention (--attn-dp-size): ranks hold other requests, and share no choice; use 1",
    ),
    _above_one("attn_cp_size", "attention context parallelism (--attn-cp-size): ranks hold parts of a prompt; use 1"),
    Rule(
        ("flashinfer_allreduce_fusion_backend",),
        lambda backend: backend is not None,
        "all-reduce fused with a layer's norm (--flashinfer-allreduce-fusion-backend, which SGLang sets for "
        "mixture-of-experts models on several GPUs): what a layer is given is looked at before its norm; use "
        "--enforce-disable-flashinfer-allreduce-fusion",
    ),
    Rule(
        ("moe_a2a_backend",),
        lambda backend: backend != "none",
        "experts that exchange tokens (--moe-a2a-backend): a rank's layers see only some tokens; use none",
    ),
    _is_set(
        "enable_attn_tp_input_scattered",
        "scattered attention inputs (--enable-attn-tp-input-scattered): a rank's norms see some tokens only; drop it",
    ),
    _is_set(
        "enable_two_batch_overlap",
        "two batches at once (--enable-two-batch-overlap): a plan is of one batch; drop it",
    ),
    _is_set(
        "enable_return_routed_experts",
        "--enable-return-routed-experts: SGLang keeps experts by slot, and slots of pruned prompts hold other tokens; "
        "drop it",
    ),
    _is_set(
        "enable_dp_attention",
        "data-parallel attention (--enable-dp-attention): ranks hold other requests, and share no choice; drop it",
    ),
    _above_one("dcp_size", "decode context parallelism (--dcp-size): it splits rows by position; use 1"),
    _is_set(
        "enable_kv_cache_sharding",
        "KV sharding (--enable-kv-cache-sharding): ranks hold different pages of a row; drop it",
    ),
    _is_set(
        "enable_deterministic_inference",
        "deterministic inference (--enable-deterministic-inference): it turns the radix cache off for these models; "
        "drop it",
    ),
    _is_set("disable_radix_cache", "--disable-radix-cache: the policy lives in the radix tree; drop it"),
    _is_set(
        "prefill_only_disable_kv_cache",
        "--prefill-only-disable-kv-cache: without stored K and V there is nothing to prune; drop it",
    ),
    _is_set("is_embedding", "embedding models (--is-embedding): no turn follows that pruning could help; drop it"),
    _is_set("enable_mis", "multi-item scoring (--enable-mis): its masks are told by position in whole rows; drop it"),
    _is_set("encoder_only", "--encoder-only: an encoder has no KV cache; give the policy to the language servers"),
    Rule(
        ("dllm_algorithm",),
        lambda algorithm: algorithm is not None,
        "diffusion language models (--dllm-algorithm): they write a row's blocks more than once; drop it",
    ),
    _is_set("enable_hisparse", "HiSparse (--enable-hisparse): two policies cannot own one page table; drop it"),
    _is_set(
        "enable_unified_memory",
        "one buffer for several pools (--enable-unified-memory): slots have other numbers in it; drop it",
    ),
    _is_set("enable_pdmux", "PD multiplexing (--enable-pdmux): prefills run beside decode steps; drop it"),
    Rule(
        ("kv_canary",),
        lambda mode: mode != "none",
        "KV canary (--kv-canary): it takes a moved token for a corrupted one; drop it",
    ),
    Rule(
        ("enable_lora", "lora_paths"),
        lambda enabled, paths: bool(enabled or paths),
        "LoRA adapters: not verified with pruned nodes; drop them",
    ),
    Rule(
        ("kv_cache_dtype",),
        lambda dtype: dtype != "fp8_e4m3" and dtype.startswith(("fp8", "fp4", "nvfp4", "mxfp4", "int")),
        "a quantised KV cache (--kv-cache-dtype): the scorer reads keys as floats; use auto or fp8_e4m3",
    ),
    Rule(
        ("mm_feature_transport",),
        lambda transport: transport == "cuda_vmm",
        "--mm-feature-transport cuda_vmm: never verified with a policy; use cpu or cuda_ipc",
    ),
    Rule(
        ("radix_cache_backend",),
        lambda name: name not in (None, "star_kv"),
        "--radix-cache-backend: the policy brings its own tree; drop the flag",
    ),
)


def require_supported_sglang() -> None:
    """Compare the installed SGLang with what this package extends; in the first process of a server only.

    Reading SGLang's source takes two seconds. The processes that a process starts import the same one, and find in
    their environment that it was looked at.

    Raises:
        SeamMovedError: Another version, or a seam whose signature differs.
    """
    installed = _installed_sglang()
    if installed is not None and os.environ.get(CHECKED_SGLANG) == installed:
        return
    problems = sglang_problems()
    if problems:
        raise SeamMovedError(problems, SUPPORTED_SGLANG)
    if installed is not None:
        os.environ[CHECKED_SGLANG] = installed


def _installed_sglang() -> str | None:
    """What tells an installed SGLang, and us, from others; None where there is none."""
    spec = find_spec("sglang")
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    return f"{spec.origin} {version} {__version__} {_newest_change(Path(spec.origin).parent)}"


def _newest_change(sglang: Path) -> int:
    """When the newest of the files that are compared, or of ours that say with what, has changed; nanoseconds."""
    from star_kv_sglang.patches import manifest

    places = {sglang / seam.upstream for seam in _seams() if seam.target.startswith("sglang.")}
    places.add(Path(str(manifest.__file__)).parent)
    files = [file for place in places for file in (place.glob("*.py") if place.is_dir() else (place,))]
    return max(file.stat().st_mtime_ns for file in files if file.is_file())


def _seams() -> tuple[Seam, ...]:
    """All that this package extends or reads, the arguments that the rules look at among them."""
    from star_kv_sglang.patches import manifest

    return (*manifest.ALL, *manifest.flags(sorted({field for rule in FLAG_RULES for field in rule.fields})))


def sglang_problems() -> list[str]:
    """One line for each difference between the installed SGLang and the supported one; empty when it fits."""
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return ["sglang is not installed"]
    if version not in SUPPORTED_SGLANG:
        return [f"sglang {version} is installed"]
    return seam_problems()


def seam_problems(folder: Path | None = None) -> list[str]:
    """One line for each place that the policy extends or reads and that an SGLang does not have as expected.

    Args:
        folder: SGLang's package, which is read and not imported; the installed one if None.
    """
    from star_kv_sglang.patches import contract

    return contract.seam_problems(_seams(), contract.SourceTree({} if folder is None else {"sglang": folder}))


def gpu_is_present() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def reasons_before_resolution(args: Any) -> list[str]:
    """Reasons that can be seen before SGLang resolves its arguments, which it may not be able to."""
    reasons = reasons_from_flags(args)
    if not gpu_is_present() and os.environ.get(CPU_SWITCH) != "1":
        reasons.append(
            "there is no GPU, and SGLang's CPU engine is off: start the server with `star-kv serve`, which turns it "
            "on; a program calls star_kv_sglang.cpu_mode.enable() before it imports sglang, and gives sglang.Engine "
            "the arguments that star_kv_sglang.cpu_mode.cpu_engine_kwargs(...) returns"
        )
    return [*reasons, *_reasons_from_preferences(args), *_reasons_from_the_environment(args)]


def _reasons_from_preferences(args: Any) -> list[str]:
    """What is wrong with the kv_* keys of every request that brings none; what is no JSON object SGLang refuses."""
    given = args.preferred_sampling_params
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return []
    problems = problems_of_preferences(given) if isinstance(given, Mapping) else []
    return [f"--preferred-sampling-params: {problem}" for problem in problems]


def _reasons_from_the_environment(args: Any) -> list[str]:
    """Ways to answer clients on which their kv_* keys would not be checked."""
    from sglang.srt.environ import envs

    reasons = []
    if envs.SGLANG_RUST_SERVER.get():
        reasons.append(
            "SGLang's server in Rust (SGLANG_RUST_SERVER): it drops kv_* keys in a wrong place without a word, and was "
            "never tried with a policy; unset it"
        )
    path = envs.SGLANG_HTTP_SERVER_APP_PATH
    if args.tokenizer_worker_num > 1 and path.is_set() and path.get() != HTTP_APP:
        reasons.append(
            f"an HTTP app of your own (SGLANG_HTTP_SERVER_APP_PATH={path.get()}) for several --tokenizer-worker-num: "
            f"requests are checked in {HTTP_APP}; unset it, or use one worker"
        )
    return reasons


def reasons_from_flags(args: Any) -> list[str]:
    """Reasons that can be seen in the flags alone.

    Args:
        args: A view of SGLang's arguments, resolved or not: what SGLang sets later is seen the second time.
    """
    return [rule.reason for rule in FLAG_RULES if rule.applies(*(getattr(args, field) for field in rule.fields))]


def reasons_against_introspection(args: Any) -> list[str]:
    """Set-ups in which nobody could look at the tree, or anybody.

    Args:
        args: A view of SGLang's arguments.
    """
    reasons = []
    if args.tokenizer_worker_num > 1:
        reasons.append(
            "--kv-introspection with several --tokenizer-worker-num: SGLang checks no API key there; use one worker"
        )
    if args.dp_size > 1:
        reasons.append("--kv-introspection with data parallelism (--dp-size): every rank has a tree; use 1")
    return reasons


def reasons_against_recognition(args: StarServerArgs) -> list[str]:
    """Set-ups in which nobody could tell which screenshots a prompt leaves out, read when all is resolved."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolved_view

    reasons = []
    if not model_config_of(args).is_multimodal:
        reasons.append("--kv-recognise-windows with a model without vision: it is shown no screenshots; drop it")
    if resolved_view(args).tp_size > 1:
        reasons.append("--kv-recognise-windows with tensor parallelism (--tp-size): never tried; drop it, or use 1")
    if resolved_view(args).skip_tokenizer_init:
        reasons.append(
            "--kv-recognise-windows with --skip-tokenizer-init: the tokenizer tells which token begins a message; drop "
            "one of them"
        )
    return reasons


def reasons_after_resolution(args: StarServerArgs) -> list[str]:
    """Reasons that show once SGLang has read the model's configuration and resolved its defaults."""
    from sglang.srt.arg_groups.overrides import (
        attention_backends_of,
        model_config_of,
        resolved_view,
        use_mla_backend,
    )

    resolved = resolved_view(args)
    reasons = reasons_from_flags(resolved)
    backends = sorted({backend for backend in attention_backends_of(resolved) if backend not in ATTENTION_BACKENDS})
    if backends:
        reasons.append(
            f"attention backend {', '.join(map(str, backends))}: page tables with holes are implemented for "
            f"{', '.join(ATTENTION_BACKENDS)}; use --attention-backend with one of these"
        )
    if resolved.device == "cpu" and resolved.page_size not in (None, 1):
        reasons.append(
            f"--page-size {resolved.page_size} on a CPU: SGLang's paged allocator needs a GPU; use page size 1"
        )
    if resolved.device == "cpu" and resolved.kv_cache_dtype == "fp8_e4m3":
        reasons.append(
            "--kv-cache-dtype fp8_e4m3 on a CPU: torch-native attention takes K and V as they lie in the pool; use auto"
        )
    model_config = model_config_of(args)
    architectures = list(getattr(model_config.hf_config, "architectures", None) or [])
    if not set(architectures) & set(VISION_MODELS + TEXT_MODELS):
        reasons.append(
            f"model architecture {', '.join(architectures) or 'unknown'}: known are {', '.join(VISION_MODELS)} "
            f"and, without pruning, {', '.join(TEXT_MODELS)}"
        )
    graphs = resolved.cuda_graph_config.prefill.backend
    if model_config.is_multimodal and graphs != "disabled":
        reasons.append(
            f"prefill CUDA graphs ({graphs}) for a model with vision: not verified with the scorer, which works "
            "between the layers of a prefill; drop --cuda-graph-backend-prefill, decode graphs stay on"
        )
    if model_config.is_hybrid_swa:
        reasons.append("a model with sliding-window layers: positions in a row no longer tell distances after pruning")
    if use_mla_backend(args):
        reasons.append("a model with multi-head latent attention (MLA): it stores no keys per head")
    return reasons
