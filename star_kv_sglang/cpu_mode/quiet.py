"""What SGLang says of every start on a CPU and means nothing there, left out by name.

Libraries that only GPUs, videos or other models need are tried and missed; the notes come in each of its processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

# Beginnings of warnings, without commas: PYTHONWARNINGS divides at commas.
WARNINGS: Final = ("Only CUDA", "Triton is not supported on current platform")
# Beginnings of log lines, by logger. A module that cannot be imported is one of another model, such as Mamba's kernels
# and audio or video through torchcodec and FFmpeg; the model that is served is refused by SGLang where its own cannot.
LOG_LINES: Final[Mapping[str, tuple[str, ...]]] = {
    "sglang.srt.models.registry": ("Ignore import error when loading",),
    "sglang.srt.managers.multimodal_processor": ("Ignore import error when loading",),
    "sglang.kernels.jit.utils.arch": ("Cannot detect CUDA architecture",),
}


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginnings)


def with_quiet_warnings(value: str) -> str:
    """The environment variable PYTHONWARNINGS with ours left out; what a user has set comes last and wins."""
    ours = [f"ignore:{beginning}:UserWarning" for beginning in WARNINGS]
    theirs = [entry for entry in value.split(",") if entry and entry not in ours]
    return ",".join([*ours, *theirs])


def leave_out_log_lines() -> None:
    """Drop these lines in this process; calling it again changes nothing."""
    for name, beginnings in LOG_LINES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Without) for one in logger.filters):
            logger.addFilter(_Without(beginnings))
