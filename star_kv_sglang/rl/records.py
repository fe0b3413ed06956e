"""From an answer's ``meta_info`` to what its tokens could attend to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from star_kv_sglang.kept_format import KEPT, KeptFormatError, KeptRecord


def read_kept(meta_info: Mapping[str, Any]) -> KeptRecord:
    """The record in the ``meta_info`` of an answer that was asked for with ``kv_return_kept``.

    Args:
        meta_info: Of ``/generate`` or ``sglang.Engine``, or of a choice of ``/v1/chat/completions``.

    Raises:
        KeptFormatError: There is none, it is of another version, or what the answer has seen is not known.
    """
    for entry in reversed(meta_info.get("star_kv") or ()):
        if entry and KEPT in entry:
            return KeptRecord.of(entry[KEPT])
    raise KeptFormatError(
        'the answer has no record: ask with "custom_params": {"kv_return_kept": true}, of a server that has a '
        "--kv-policy, and look at the last chunk of a stream"
    )
