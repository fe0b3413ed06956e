"""What SGLang's registries build for us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from star_kv_sglang.engine import runtime

if TYPE_CHECKING:
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext
    from sglang.srt.model_executor.model_runner import ModelRunner


def build_tree(ctx: TreeCacheBuildContext) -> Any:
    """The tree of the scheduler process. It is built last, so every hook is checked here.

    Raises:
        SeamMovedError: A hook is not in place.
    """
    from star_kv_sglang.patches.activate import verify_active

    verify_active()
    return runtime.get().build_tree(ctx.params)


def build_torch_native(runner: ModelRunner) -> Any:
    """Torch-native attention over rows with holes."""
    from star_kv_sglang.attention.torch_native_backend import StarTorchNativeBackend

    return StarTorchNativeBackend(runner, runtime.get().model_parts(runner))


def build_flashinfer(runner: ModelRunner) -> Any:
    """FlashInfer attention over rows with holes."""
    from star_kv_sglang.attention.flashinfer_backend import StarFlashInferBackend

    parts = runtime.get().model_parts(runner)
    return StarFlashInferBackend(runner, parts, init_new_workspace=runner.init_new_workspace)
