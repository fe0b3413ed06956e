"""New weights, pauses, flushes in the middle of pruned conversations: nothing of before is seen, masks stay right.

Memory that SGLang lends out (``release_memory_occupation``) needs a GPU: ``tests/engine/test_gpu_training.py``.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.loop import improve

from star_kv_sglang.rl import KeptFormatError, read_kept
from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine, running_engine
from tests.engine.masked_reference import MaskedReference

pytestmark = pytest.mark.slow

ASKS: Final[dict[str, Any]] = {"logprob_from": -1, "custom_params": {"kv_return_kept": True}}
NUM_OUTPUT = 5


@pytest.fixture(scope="module")
def models(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with other weights in both of its towers."""
    first = checkpoint("tinygui")
    other = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(first, other)
    factors = {"visual": 0.9, "o_proj": 0.7}
    for file in other.glob("*.safetensors"):
        weights = {
            name: value * next((factor for part, factor in factors.items() if part in name), 1.0)
            for name, value in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    return first, other


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint by name."""
    return {name: value for file in model.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.fixture(scope="module")
def references(models: tuple[Path, Path]) -> tuple[MaskedReference, MaskedReference]:
    first, other = models
    return MaskedReference(first), MaskedReference(other)


@pytest.fixture(scope="module")
def file_engine(models: tuple[Path, Path]) -> Iterator[TestEngine]:
    with running_engine(models[0], exact=True, kv_policy="star", kv_budget=0.2) as engine:
        yield engine


def turn(chat: Chat, seed: int) -> Chat:
    """The conversation with another screenshot and question.

    The screenshot has a size that the model takes as it is: a GPU and a CPU resize to pixels that differ in places.
    """
    return chat.ask(question(seed), screenshot(seed, 8, 8, 32))


def play(engine: TestEngine, reference: MaskedReference) -> list[Answer]:
    """Two turns from an empty tree, each as a trainer with the same weights computes it."""
    chat, answers = Chat(), []
    for number in range(2):
        chat = turn(chat, number)
        answer = engine.answer(chat, NUM_OUTPUT, **ASKS)
        logprobs = torch.tensor(answer.logprobs)
        assert (reference.recomputed(chat, answer) - logprobs).abs().max() < 1e-4
        chat = chat.reply(answer.text)
        answers.append(answer)
    assert len(read_kept(answers[-1].meta).prunes) > 1
    return answers


def from_disk(engine: TestEngine, model: Path) -> None:
    success, message, *_ = engine.engine.update_weights_from_disk(str(model))
    assert success, message


def from_tensor(engine: TestEngine, model: Path) -> None:
    assert engine.engine.begin_weight_update()[0]
    success, message = engine.engine.update_weights_from_tensor(list(weights_of(model).items()))
    assert success, message
    assert engine.engine.end_weight_update()[0]


def from_distributed(engine: TestEngine, model: Path) -> None:
    """As a trainer of another process sends them: it is rank 0 of a group with the engine."""
    from sglang.srt.utils import init_custom_process_group

    weights = weights_of(model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"trainer{port}"

    def train() -> None:
        where = f"tcp://127.0.0.1:{port}"
        group = init_custom_process_group("gloo", where, timedelta(seconds=30), 2, 0, group_name=name)
        for value in weights.values():
            torch.distributed.broadcast(value.contiguous(), src=0, group=group)
        torch.distributed.destroy_process_group(group)

    trainer = threading.Thread(target=train, daemon=True)
    trainer.start()
    success, message = engine.engine.init_weights_update_group("127.0.0.1", port, 1, 2, name, backend="gloo")
    assert success, message
    assert engine.engine.begin_weight_update()[0]
    success, message = engine.engine.update_weights_from_distributed(
        list(weights),
        [str(value.dtype).removeprefix("torch.") for value in weights.values()],
        [list(value.shape) for value in weights.values()],
        group_name=name,
    )
    assert success, message
    assert engine.engine.end_weight_update()[0]
    trainer.join(30)
    assert not trainer.is_alive()
    assert engine.engine.destroy_weights_update_group(name)[0]


@pytest.mark.parametrize("update", [from_disk, from_tensor, from_distributed])
def test_new_weights_see_nothing_of_the_old_ones(
    engine: TestEngine,
    models: tuple[Path, Path],
    references: tuple[MaskedReference, MaskedReference],
    update: Callable[[TestEngine, Path], None],
) -> None:
    first, other = models
    before = play(engine, references[0])
    update(engine, other)
    stats = engine.run(engine.idle_stats())
    assert stats["num_live_tokens"] == stats["num_hole_tokens"] == stats["num_state_bytes"] == 0
    after = play(engine, references[1])
    assert [answer.logprobs for answer in after] != [answer.logprobs for answer in before]
    update(engine, first)
    assert [answer.token_ids for answer in play(engine, references[0])] == [answer.token_ids for answer in before]


def test_a_flush_forgets_what_was_kept(engine: TestEngine, references: tuple[MaskedReference, MaskedReference]) -> None:
    before = play(engine, references[0])
    engine.flush()
    after = play(engine, references[0])
    assert [answer.meta["star_kv"] for answer in after] == [answer.meta["star_kv"] for answer in before]


def test_new_weights_in_a_pause(
    engine: TestEngine, models: tuple[Path, Path], references: tuple[MaskedReference, MaskedReference]
) -> None:
    """A request that is put back for new weights goes on with them, and does not say that one mask fits all of it."""
    chat = turn(Chat(), 1)
    chat = turn(chat.reply(engine.answer(chat, NUM_OUTPUT, **ASKS).text), 2)
    calls = engine.engine.tokenizer_manager

    async def interrupted() -> Answer:
        from sglang.srt.managers.io_struct import (
            ContinueGenerationReqInput,
            PauseGenerationReqInput,
            UpdateWeightFromDiskReqInput,
        )

        running = await engine.queue(chat, 150, **ASKS)
        await asyncio.sleep(0.3)
        await calls.pause_generation(PauseGenerationReqInput(mode="retract"))
        success, message, *_ = await calls.update_weights_from_disk(
            UpdateWeightFromDiskReqInput(model_path=str(models[1]))
        )
        assert success, message
        await calls.continue_generation(ContinueGenerationReqInput())
        return await running

    answer = engine.run(interrupted())
    assert answer.retractions == 1 and len(answer.token_ids) == 150
    with pytest.raises(KeptFormatError, match="put back into the queue"):
        read_kept(answer.meta)
    engine.flush()
    play(engine, references[1])
    from_disk(engine, models[0])


def test_a_pause_that_aborts(engine: TestEngine, references: tuple[MaskedReference, MaskedReference]) -> None:
    chat = turn(Chat(), 1)
    calls = engine.engine.tokenizer_manager

    async def interrupted() -> Answer:
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput, PauseGenerationReqInput

        running = await engine.queue(chat, 150, **ASKS)
        await asyncio.sleep(0.3)
        await calls.pause_generation(PauseGenerationReqInput(mode="abort"))
        await calls.continue_generation(ContinueGenerationReqInput())
        return await running

    answer = engine.run(interrupted())
    assert answer.reason["type"] == "abort" and 0 < len(answer.token_ids) < 150
    # What it had answered until then is told as ever.
    assert (references[0].recomputed(chat, answer) - torch.tensor(answer.logprobs)).abs().max() < 1e-4
    engine.flush()
    play(engine, references[0])


def test_the_loop_of_the_example(engine: TestEngine, models: tuple[Path, Path]) -> None:
    """Importance ratios are 1 with the masks and not without, before a step of the trainer and behind it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(models[0], dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(models[0])
    first, second = improve(engine.engine, model, processor, group=2, turns=3, steps=2)
    for step in (first, second):
        assert step.worst_masked < 1e-4
        assert step.worst_unmasked > 1e-3
    from_disk(engine, models[0])
