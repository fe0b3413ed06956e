"""`star-kv tune`: what is wrong is one message that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from star_kv_sglang.cli.main import main
from star_kv_sglang.tools.cli.tune import refuse_own_flags
from star_kv_sglang.tools.tune.errors import TuneError
from tests.models.checkpoints import EXAMPLE_MODEL
from tests.tune.cases import data_url, png, user


def words(tmp_path: Path, **options: str) -> list[str]:
    """A command whose recordings can be replayed."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([user("click", data_url(png()))]), encoding="utf-8")
    given = {"model-path": str(EXAMPLE_MODEL), "trajectories": str(path), "out": str(tmp_path / "out"), **options}
    return ["tune", *(word for name, value in given.items() for word in (f"--{name}", value))]


def test_help_says_what_it_does_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "say which to serve with" in " ".join(shown.split())
    for option in ("--model-path", "--trajectories", "--policies", "--budgets", "--max-loss", "--agent", "--protocol"):
        assert option in shown


WRONG = [
    ({"trajectories": "nowhere"}, "nowhere: does not exist; give a folder with recordings"),
    ({"policies": "pyramidkv"}, "--policies pyramidkv is not offered: its only difference from snapkv"),
    ({"policies": "stars"}, "--policies 'stars' is not known: choose distinct, "),
    ({"policies": "full"}, "--policies names none besides the full cache"),
    ({"budgets": "0.2,x"}, "--budgets '0.2,x' must be numbers between 0 and 1"),
    ({"budgets": "1.5"}, "--budgets '1.5' must be numbers between 0 and 1"),
    ({"agent": "nobody"}, "--agent 'nobody' is not known: choose words, small, "),
    ({"model-path": "no/such/model"}, "--model-path no/such/model: has no tokenizer that can be loaded"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_mistake_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], said: str
) -> None:
    assert main(words(tmp_path, **options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["--kv-policy", "--kv-budget=0.1", "--kv-image-window", "--kv-policy-config"])
def test_words_for_the_servers_do_not_say_what_is_compared(word: str) -> None:
    with pytest.raises(TuneError, match="every server of this command has its own"):
        refuse_own_flags(["--mem-fraction-static", "0.8", word, "snapkv"])


def test_an_api_key_is_not_written_into_the_page() -> None:
    with pytest.raises(TuneError, match="leave it out"):
        refuse_own_flags(["--api-key", "secret"])
