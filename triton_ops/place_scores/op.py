"""Scores that compare over screenshots, by each token's place in the order of its own."""

from __future__ import annotations

import torch

from star_kv_sglang.triton_ops.checks import check_contiguous, check_dtype, check_same_device, check_shape
from star_kv_sglang.triton_ops.launch import pow2
from star_kv_sglang.triton_ops.place_scores.kernel import place_scores_kernel

MAX_TILE = 16384


def place_scores(
    places: torch.Tensor,
    distances: torch.Tensor,
    beside: torch.Tensor,
    fading: torch.Tensor | None,
    previous_temperature: torch.Tensor | None,
    *,
    prominent: float,
    temperature_range: tuple[float, float] | None,
    temperature_smoothing: float,
) -> torch.Tensor:
    """`(fading * n / (n + place)) ** (1 / temperature)`, with n of what a layer's screenshot shows.

    n is the number of tokens that lie more than `prominent` times as far from the mean as the lower median of all,
    those `beside` a peak left out; at least 1. The temperature runs from `temperature_range[0]` to `[1]` with the
    entropy of the distances over that of a flat screenshot (nothing that stands out, or a single token, counts as
    flat), mixed with the previous one by `temperature_smoothing`. STaR-KV (arXiv 2606.01790), entropy-based budget.

    | argument | shape | dtype | |
    |---|---|---|---|
    | places | [L, V] | float32 | 0 for the best; tokens contiguous |
    | distances | [L, V] | float32 | at least 0; tokens contiguous |
    | beside | [L, V] | float32 | 0 or 1; tokens contiguous |
    | fading | [L, V] or None | float32 | above 0; contiguous; None: 1 |
    | previous_temperature | [L] or None | float32 | contiguous; None: there is none |
    | temperature_range | (min, max) or None | host | None: no temperature |
    | result | [L, V] | float32 | |

    2e-6 relative to the reference.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
    """
    num_layers, num_tokens = distances.shape
    tensors = {"places": places, "distances": distances, "beside": beside}
    if fading is not None:
        tensors["fading"] = fading
        check_contiguous(fading=fading)
    for name, tensor in tensors.items():
        check_shape(name, tensor, (num_layers, num_tokens))
        check_dtype(name, tensor, torch.float32)
        if tensor.stride(1) != 1:
            raise ValueError(f"{name} must be contiguous along its tokens, its strides are {list(tensor.stride())}")
    check_same_device(distances, **tensors)
    if previous_temperature is not None:
        check_shape("previous_temperature", previous_temperature, (num_layers,))
        check_dtype("previous_temperature", previous_temperature, torch.float32)
        check_same_device(distances, previous_temperature=previous_temperature)
        previous_temperature = previous_temperature.contiguous()
    out = torch.empty(num_layers, num_tokens, dtype=torch.float32, device=distances.device)
    if num_layers and num_tokens:
        low, high = (1.0, 1.0) if temperature_range is None else temperature_range
        tile = pow2(num_tokens, 16, MAX_TILE)
        place_scores_kernel[(num_layers,)](
            places,
            distances,
            beside,
            distances if fading is None else fading,
            distances if previous_temperature is None else previous_temperature,
            out,
            places.stride(0),
            distances.stride(0),
            beside.stride(0),
            num_tokens,
            prominent,
            low,
            high,
            temperature_smoothing,
            USE_TEMPERATURE=temperature_range is not None,
            HAS_FADING=fading is not None,
            HAS_PREVIOUS=previous_temperature is not None,
            BLOCK_T=tile,
            ONE_TILE=num_tokens <= tile,
            num_warps=8 if tile < 8192 else 16,
        )
    return out
