"""Small tables that the host has made, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """A tensor of these values on the device, queued on the current stream: the host does not wait, as it would for
    ``torch.tensor(..., device=device)``.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
