"""The model families that are known, by name."""

from __future__ import annotations

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.families.opencua import OpenCUA
from star_kv_sglang.tools.eval.families.qwen_vl import Qwen3VL, Qwen25VL
from star_kv_sglang.tools.eval.families.ui_tars import UITars15

FAMILIES: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Makes a family known to ``--model-family``; a later one of the same name replaces the earlier."""
    FAMILIES[family.name] = family


def get_family(name: str) -> ModelFamily:
    """The family of a name.

    Raises:
        EvalError: there is none; the message lists those that exist.
    """
    if name not in FAMILIES:
        raise EvalError(f"--model-family {name!r} does not exist; choose one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


for _family in (UITars15(), Qwen25VL(), Qwen3VL(), OpenCUA()):
    register_family(_family)
