"""What an evaluation raises."""

from __future__ import annotations

from pathlib import Path

from star_kv_sglang.errors import StarKVError


class EvalError(StarKVError):
    """Base of the evaluation's errors."""


class DataError(EvalError, ValueError):
    """A data set cannot be used at all: a file is missing, is no JSON, or holds no usable row."""


class MalformedRow(EvalError, ValueError):
    """One row of a data set cannot be used; the run goes on without it.

    Args:
        path: the file.
        row: the place in it, for example ``row 12`` or ``step 3``.
        reason: what is wrong, and what is expected.
    """

    def __init__(self, path: Path, row: str, reason: str) -> None:
        self.path = path
        self.row = row
        self.reason = reason
        super().__init__(f"{path}: {row}: {reason}")


class ReplyError(EvalError, ValueError):
    """A model's reply holds no action that can be read. It counts as wrong."""


class RunFolderError(EvalError, ValueError):
    """A run's folder cannot be used: it belongs to another run, or a file in it is damaged."""
