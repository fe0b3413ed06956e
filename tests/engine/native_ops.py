"""A plugin of SGLang for tests: on a GPU, PyTorch's own operators instead of fused kernels for half precision."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Make every operator of this process take its native path, and attention the plain one."""
    import torch
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.models import utils

    def native(self: Any) -> Any:
        return self.forward_native

    BaseFusedOp._resolve_forward_method = native
    utils.can_use_fused_inplace_qknorm = lambda *args: False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cudnn.allow_tf32 = False
