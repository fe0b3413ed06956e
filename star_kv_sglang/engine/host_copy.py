"""A device tensor on its way to the host: nothing waits until somebody needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HostCopy:
    """A copy that was queued behind the work that makes the tensor.

    Attributes:
        tensor: On the host; on a GPU's behalf valid once ``ready`` has passed.
        ready: Event behind the copy; None where the tensor was on the host.
    """

    tensor: torch.Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, tensor: torch.Tensor) -> HostCopy:
        """Queue the copy on the current stream."""
        if tensor.device.type != "cuda":
            return cls(tensor, None)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return cls(host, ready)

    def wait(self) -> torch.Tensor:
        """The values, once they are there."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.tensor
