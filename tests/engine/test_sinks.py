"""Sinks of a random wide model: they stay in every layer beside the budget, and answers follow what stays."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.conversation import Answer, Chat, question, screenshot
from tests.engine.harness import running_engine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference
from tests.models.checkpoints import make_qwen2_5_vl

pytestmark = pytest.mark.slow

SIZES = ((6, 6), (7, 5))
BUDGET = 0.2
TOLERANCE = 1e-4
MASSIVE = 200.0
"""Norm of what is added behind the first layer, over the usual norm there."""


@dataclass(frozen=True)
class Played:
    """A conversation, the place of the sink in its first screenshot, and what each prune kept beside the budget."""

    model: Path
    turns: list[tuple[Chat, Answer]]
    drops: list[Drop]
    place: int
    num_apart: list[int]


def asked(chat: Chat, turn: int) -> Chat:
    """The next turn of a conversation."""
    return chat.ask(question(turn), screenshot(turn, *SIZES[turn], 28))


def plant(source: Path, target: Path) -> int:
    """A copy of a checkpoint with a neuron in its first layer for one token of the first turn's prompt, and no other.

    Returns:
        The place of this token in its screenshot.
    """
    reference = MaskedReference(source)
    model: Any = reference._model
    inputs = reference._inputs(asked(Chat(), 0))
    layer = model.model.language_model.layers[0]
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.update(inputs=args[0][0])),
        layer.register_forward_hook(lambda _, __, out: seen.update(outputs=out[0] if isinstance(out, tuple) else out)),
    ]
    with torch.inference_mode():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    tokens, usual = seen["inputs"].double(), float(seen["outputs"].norm(dim=-1).median())
    # Of the token that lies furthest outside of the others' span: it is told apart most surely.
    apart = torch.linalg.pinv(tokens, rtol=1e-3)
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    own = (tokens[visual] * apart[:, visual].T).sum(1)
    place = int(own.argmax())
    with torch.no_grad():
        fires = (20 * apart[:, visual[place]] / own[place]).float()
        layer.mlp.gate_proj.weight[0] = layer.mlp.up_proj.weight[0] = fires
        layer.mlp.down_proj.weight[:, 0] = 0.0
        layer.mlp.down_proj.weight[7, 0] = MASSIVE * usual / 400
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(target)
    return place


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Two turns of a model with a sink."""
    source, target = make_qwen2_5_vl(tmp_path_factory.mktemp("wide") / "model", wide=True), tmp_path_factory.mktemp("s")
    place, trace = plant(source, target), tmp_path_factory.mktemp("trace")
    turns, chat, hit = [], Chat(), 0
    with running_engine(
        target, exact=True, kv_policy="star", kv_budget=BUDGET, policy_config={"trace_dir": str(trace)}
    ) as engine:
        for turn in range(len(SIZES)):
            chat = asked(chat, turn)
            answer = engine.answer(chat, 4, logprob_from=hit, rid=f"turn{turn}")
            assert answer.cached == hit
            turns.append((chat, answer))
            chat, hit = chat.reply(answer.text), answer.num_stored
        assert engine.stats()["num_pruner_faults"] == 0
    metas = [json.loads(np.load(file)["meta"].tobytes()) for file in sorted(trace.glob("*.npz"))]
    return Played(target, turns, read_drops(trace), place, [meta["num_apart"] for meta in metas])


def test_a_sink_stays_in_every_layer_beside_the_budget(played: Played) -> None:
    first = [drop for drop in played.drops if drop.frame == 0]
    num_visual = SIZES[0][0] * SIZES[0][1]
    assert first[0].kept.shape[1] == math.ceil(BUDGET * num_visual) + 1
    # The next turn takes what rounding had left to it, and not the sink.
    assert [drop.kept.shape[1] for drop in first[1:]] == [math.floor(BUDGET * num_visual) + 1]
    assert played.num_apart[: len(first)] == [1] * len(first)
    for drop in first:
        assert all(drop.start + played.place in layer for layer in drop.kept.tolist())


@pytest.mark.parametrize("number", range(len(SIZES)), ids=lambda number: f"turn{number + 1}")
def test_answers_follow_the_masked_reference(played: Played, number: int) -> None:
    reference = MaskedReference(played.model)
    chat, answer = played.turns[number]
    visible = [drop for drop in played.drops if drop.frame <= number]
    want = reference.logprobs(chat, answer.token_ids, visible)
    assert worst_difference(answer, want, reference.prompt_ids(chat)) < TOLERANCE
    # The control: what was dropped matters.
    whole = reference.logprobs(chat, answer.token_ids, [])
    assert worst_difference(answer, whole, reference.prompt_ids(chat)) > 10 * TOLERANCE
