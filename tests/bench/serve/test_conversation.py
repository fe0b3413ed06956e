"""Conversations are append-only in tokens, and private from their first words on."""

from __future__ import annotations

from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.serve.checkpoint import SHAPES, SPECIAL_TOKENS, Shape, build_tokenizer, write_checkpoint
from star_kv_sglang.tools.bench.serve.conversation import branch
from star_kv_sglang.tools.bench.serve.screens import NUM_SCREENS, write_screens

SCREENS = [Path(f"{index}.png") for index in range(4)]


@pytest.mark.parametrize("shape", [pytest.param(shape, id=name) for name, shape in SHAPES.items()])
def test_any_answer_is_sent_back_as_the_same_tokens(shape: Shape) -> None:
    """The next prompt must begin with prompt and answer, token by token, or the tree finds less than there is."""
    tokenizer = build_tokenizer(shape)
    answer = [0, 1, 3, 17, shape.first_special - 1, shape.vocab_size - 1, 3]
    talk = branch(3, SCREENS, 2)
    before = tokenizer.encode(talk.text).ids
    after = tokenizer.encode(talk.answered(tokenizer.decode(answer)).shown(SCREENS[0]).text).ids
    assert after[: len(before) + len(answer)] == before + answer


def test_every_id_of_a_vocabulary_is_one_word() -> None:
    shape = SHAPES["tiny"]
    tokenizer = build_tokenizer(shape)
    ids = range(shape.vocab_size)
    assert tokenizer.get_vocab_size() == shape.vocab_size
    words = [index for index in ids if tokenizer.id_to_token(index) not in SPECIAL_TOKENS]
    assert tokenizer.encode(tokenizer.decode(words)).ids == words


def test_branches_differ_from_their_third_token_on() -> None:
    tokenizer = build_tokenizer(SHAPES["tiny"])
    first_words = {tuple(tokenizer.encode(branch(number, SCREENS, 1).text).ids[2:4]) for number in range(2000)}
    assert len(first_words) == 2000


def test_a_placeholder_for_each_screenshot() -> None:
    talk = branch(0, SCREENS, 6)
    assert talk.text.count("<|image_pad|>") == len(talk.screens) == 6


def test_a_checkpoint_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoProcessor

    folder = write_checkpoint(tmp_path / "model", SHAPES["7b"])
    config = AutoConfig.from_pretrained(folder)
    assert (config.text_config.num_hidden_layers, config.text_config.vocab_size) == (28, 152_064)
    processor = AutoProcessor.from_pretrained(folder)
    (screen, *_) = write_screens(tmp_path / "screens", (560, 280))
    from PIL import Image

    inputs = processor(text=branch(0, [screen], 1).text, images=[Image.open(screen)], return_tensors="pt")
    assert int((inputs["input_ids"] == config.image_token_id).sum()) == 20 * 10


def test_screenshots_differ(tmp_path: Path) -> None:
    files = write_screens(tmp_path, (112, 84))
    assert len({path.read_bytes() for path in files}) == NUM_SCREENS
