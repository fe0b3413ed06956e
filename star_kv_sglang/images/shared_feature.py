"""What travels to the scheduler instead of a screenshot's features: where they lie."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.mm_utils import ShmPointerMMData

from star_kv_sglang.images.segment import SegmentAddress, map_privately


class SharedFeature(ShmPointerMMData):
    """Features in memory that the API process keeps; SGLang's receiver turns them into a tensor as its own pointers.

    The receiver maps the pages and reads none: the vision tower is the first to look at them, if it runs at all.

    Args:
        address: Their segment.
        shape: Of the tensor.
        dtype: Of the tensor.
    """

    def __init__(self, address: SegmentAddress, shape: torch.Size, dtype: torch.dtype) -> None:
        self.address, self.shape, self.dtype = address, shape, dtype
        self.tensor: torch.Tensor | None = None
        self._shm_handle = None
        self._error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
        # Unpickling never fails: a request whose features are gone is refused by itself, and its neighbours go on.
        try:
            memory = map_privately(self.address)
            self.tensor = torch.empty(0, dtype=self.dtype).set_(memory).view(self.shape)
        except Exception as error:
            self._error = error

    def materialize(self) -> torch.Tensor:
        """The features, as mapped when this was received.

        Raises:
            RuntimeError: They could not be mapped.
        """
        tensor, self.tensor = self.tensor, None
        if tensor is None:
            raise RuntimeError(f"a screenshot's features could not be mapped: {self._error}") from self._error
        return tensor

    def close_and_unlink(self) -> None:
        """Let go of the mapping; the memory is its owner's."""
        self.tensor = None
