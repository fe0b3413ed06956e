"""Say, step by step, what of SGLang's stack works on this GPU machine: one line each, exit status 1 if one fails.

. scripts/gpu_env.sh && python3 scripts/offline_gpu/check.py
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Callable


def versions() -> str:
    """What is installed."""
    names = ("torch", "triton", "flashinfer-python", "sglang-kernel", "sglang", "transformers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def gpu() -> str:
    """The device, as torch sees it."""
    import torch

    return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def matrix_product() -> float:
    """Relative error of a bfloat16 product."""
    import torch

    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    want = a[:64].float() @ a.float()
    return float(((a @ a)[:64].float() - want).abs().max() / want.abs().max())


def vision_patch() -> tuple[int, ...]:
    """The convolution that begins the vision tower, through cuDNN."""
    import torch

    convolution = torch.nn.Conv3d(3, 32, (2, 14, 14), stride=(2, 14, 14), bias=False).cuda().bfloat16()
    return tuple(convolution(torch.randn(8, 3, 2, 14, 14, device="cuda", dtype=torch.bfloat16)).shape)


def graph() -> bool:
    """A CUDA graph that is replayed."""
    import torch

    a = torch.randn(256, 256, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        b = a @ a
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        c = a @ a
    captured.replay()
    torch.cuda.synchronize()
    return bool(torch.allclose(b, c))


def triton_kernel() -> bool:
    """One kernel of this project against its reference."""
    import torch

    from star_kv_sglang.triton_ops.dispatch import get_ops

    rows = torch.tensor([[0, 3, 0, 7, 9]], dtype=torch.int32, device="cuda")
    found = []
    for name in ("triton", "reference"):
        indptr = torch.zeros(2, dtype=torch.int32, device="cuda")
        indices = torch.zeros(5, dtype=torch.int32, device="cuda")
        one, five = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((1,), 5, device="cuda")
        get_ops(name).page_table(rows, one, five, max_seq_len=5, kv_indptr=indptr, kv_indices=indices)
        found.append((indptr.tolist(), indices.tolist()[:3]))
    if found[0] != found[1]:
        raise ValueError(f"Triton {found[0]}, reference {found[1]}")
    return True


def sglang_kernel() -> float:
    """Error of one of SGLang's compiled kernels."""
    import sgl_kernel
    import torch

    x = torch.randn(64, 2048, device="cuda", dtype=torch.bfloat16)
    want = torch.nn.functional.silu(x[:, :1024].float()) * x[:, 1024:].float()
    return float((sgl_kernel.silu_and_mul(x).float() - want).abs().max())


def flashinfer_prefill() -> float:
    """Error of FlashInfer's attention; compiles it where that has not been done, about 75 seconds."""
    import flashinfer
    import torch

    q = torch.randn(128, 8, 128, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(256, 2, 128, device="cuda", dtype=torch.bfloat16)
    out = flashinfer.single_prefill_with_kv_cache(q, k, k, causal=False)
    keys = k.repeat_interleave(4, 1).float()
    weights = (torch.einsum("qhd,khd->hqk", q.float(), keys) / 128**0.5).softmax(-1)
    return float((out.float() - torch.einsum("hqk,khd->qhd", weights, keys)).abs().max())


STEPS: tuple[Callable[[], object], ...] = (
    versions,
    gpu,
    matrix_product,
    vision_patch,
    graph,
    triton_kernel,
    sglang_kernel,
    flashinfer_prefill,
)


def main() -> None:
    """Take every step."""
    failed = False
    for step in STEPS:
        start = time.monotonic()
        try:
            line = f"ok    {step.__name__}: {step()}"
        except Exception as error:  # whatever is wrong with a step, the others say more
            failed = True
            line = f"WRONG {step.__name__}: {type(error).__name__}: {error}"
        print(f"{line} ({time.monotonic() - start:.1f} s)", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
