"""The library example of docs/rollouts.md runs as it stands, but for the server's address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT
from tests.rollout.cases import png
from tests.rollout.fake_server import fake_server, reply


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "screen.png").write_bytes(png(3))
    monkeypatch.chdir(tmp_path)
    with fake_server(reply("x3 y1")) as server:
        exec(compile(example.replace("http://127.0.0.1:30000", server.url), "docs/rollouts.md", "exec"), {})
    assert capsys.readouterr().out == "field 4 of 4\n"
