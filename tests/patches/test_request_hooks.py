"""Checks of requests where SGLang has not all of its APIs: their libraries are optional."""

from __future__ import annotations

import sys

import pytest

from star_kv_sglang.patches import activate
from star_kv_sglang.patches.manifest import REQUEST_HOOKS

RESPONSES = "sglang.srt.entrypoints.openai.serving_responses"


def test_every_hook_names_the_module_that_it_is_in() -> None:
    for seam in REQUEST_HOOKS:
        module = "sglang." + seam.upstream.removesuffix(".py").replace("/", ".")
        assert seam.target.startswith(f"{module}."), seam.target


def test_an_api_whose_libraries_are_missing_has_no_checks_and_the_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang.srt.entrypoints.openai as package

    # As where the module's first import fails: it is in no table of modules, and no attribute of its package.
    monkeypatch.setitem(sys.modules, RESPONSES, None)
    monkeypatch.delattr(package, "serving_responses", raising=False)
    hooks = activate.request_hooks()
    missing = [seam.target for seam in REQUEST_HOOKS if seam not in hooks]
    assert missing == [f"{RESPONSES}.OpenAIServingResponses.create_responses"]
