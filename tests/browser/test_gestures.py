"""Keys by their names, and what is missing by what to install."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.browser import extra
from star_kv_sglang.tools.browser.gestures import key_names
from star_kv_sglang.tools.rollout import ActionRefusedError, RolloutError


@pytest.mark.parametrize(
    ("keys", "pressed"),
    [
        (("enter",), ["Enter"]),
        (("ctrl", "a"), ["Control+a"]),
        (("ctrl", "a", "backspace"), ["Control+a", "Backspace"]),
        (("ctrl", "shift", "left"), ["Control+Shift+ArrowLeft"]),
        (("down", "down"), ["ArrowDown", "ArrowDown"]),
        (("f5", "+"), ["F5", "+"]),
    ],
)
def test_keys(keys: tuple[str, ...], pressed: list[str]) -> None:
    assert key_names(keys) == pressed


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("hyper",), "no key 'hyper'"),
        (("ctrl", "é"), "no key 'é'"),
        (("\x07",), r"no key '\\x07'"),
        (("ctrl",), "press nothing"),
        ((), "press nothing"),
    ],
    ids=["unknown", "accent", "control", "modifier", "none"],
)
def test_keys_that_there_are_not(keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(ActionRefusedError, match=message):
        key_names(keys)


def test_a_missing_library_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in ("miniwob", "playwright") else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert main(["rollout", "--env", "miniwob"]) == 2
    assert capsys.readouterr().err == (
        "error: a rollout in the browser needs playwright and miniwob: pip install 'star-kv-sglang[browser]'\n"
    )


def test_a_missing_browser_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="is no file"):
        extra.find_chromium(tmp_path / "chromium")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RolloutError, match=r"no Chromium on the path: on Debian, apt-get install chromium"):
        extra.find_chromium()
