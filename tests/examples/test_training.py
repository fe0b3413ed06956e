"""The second model's training: the same arithmetic as transformers, questions that are true, a loss that falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLConfig

from star_kv_sglang.tools.rollout.scoring import is_correct
from tinygui.accuracy import MODEL
from tinygui.language import Question, possible_questions, step_name
from tinygui.training.batch import CLICK, KINDS, READ, READ_BACK, RECALL, Batch, Mix, Sampler, View
from tinygui.training.curriculum import SINGLE, STAGES, Stage
from tinygui.training.evaluate import Tally, is_right
from tinygui.training.forward import interpolate
from tinygui.training.layout import WORD, Layout, LayoutSpec
from tinygui.training.pool import Pool, Trajectories, by_token, draw, held_out, stream
from tinygui.training.sizes import GRID, Sizes
from tinygui.training.step import AdamW, Model, Trainer, bias_of
from tinygui.training.weights import Weights, save, whitening
from tinygui.world import Background, Screen, Widget
from tinygui.worlds import PAGES, PANELS, WORLDS

CPU = torch.device("cpu")
TINY = Sizes(64, 2, 4, 2, 32, 64, 64, 2, 2, 64, mrope_section=(6, 5, 5))
"""Small, with as many heads as make every shape differ."""


def tokens_to_words() -> dict[int, str]:
    return {number: word for word, number in WORD.items()}


@pytest.fixture(scope="module")
def trajectories() -> Trajectories:
    made = Trajectories.empty(2, CPU)
    for index, world in enumerate(WORLDS):
        pixels, widgets = draw("validation", world, 0)
        made.put(index, torch.from_numpy(pixels), torch.from_numpy(widgets))
    return made


def randomized(sizes: Sizes) -> Weights:
    """Weights far from where they start: biases and norms of their own."""
    weights = Weights(sizes, 3, torch.float32, CPU)
    weights.flat += 0.05 * torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(4))
    weights.refresh()
    return weights


def in_transformers(weights: Weights) -> Any:
    config = Qwen3VLConfig(**{k: v for k, v in weights.sizes.hf_config().items() if k != "architectures"})
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(weights.state())
    return model


@pytest.mark.slow
@pytest.mark.parametrize("trunk", [1, 2], ids=["one-question", "two-questions"])
def test_the_forward_pass_is_transformers(trajectories: Trajectories, trunk: int) -> None:
    weights = randomized(TINY)
    model, reference = Model(weights, CPU), in_transformers(weights)
    layout = Layout(LayoutSpec(2, trunk), CPU)
    batch = Sampler(trajectories, 5, gaps=False).draw(layout, 2, Mix(), torch.arange(2))
    interpolation = model.tables.interpolations["aligned"]
    length = int(layout.positions.nonzero().max()) + 1
    with torch.no_grad():
        ours = model.hidden(layout, bias_of(layout, torch.float32), batch, interpolation)[:, :length]
        tokens = batch.tokens[:, :length]
        types = (tokens == WORD["<|image_pad|>"]).int()
        grids = torch.tensor([[1, 18, 28]] * 4)
        pixels = batch.patches.reshape(-1, 3, 1, 256).expand(-1, -1, 2, -1).reshape(-1, 1536) / 127.5 - 1
        output = reference.model(
            input_ids=tokens, mm_token_type_ids=types, pixel_values=pixels, image_grid_thw=grids, use_cache=False
        )
        positions, _ = reference.model.get_rope_index(tokens, mm_token_type_ids=types, image_grid_thw=grids)
    assert torch.equal(positions, batch.positions[:, :, :length].transpose(0, 1))
    assert (ours - output.last_hidden_state).abs().max() < 2e-4


def test_pixels_are_laid_out_as_the_processor_does() -> None:
    pixels, _ = draw("validation", "pages", 3)
    processor = Qwen2VLImageProcessor.from_pretrained(MODEL)
    wanted = processor(images=[PAGES.render(s) for s in PAGES.screens(stream("validation", "pages", 3), 6)][:2])
    ours = by_token(torch.from_numpy(pixels[:2])).reshape(-1, 3, 1, 256).expand(-1, -1, 2, -1).reshape(-1, 1536)
    assert (ours / 127.5 - 1 - torch.as_tensor(wanted["pixel_values"])).abs().max() < 1e-5


def test_the_trunk_is_the_chat_template(trajectories: Trajectories) -> None:
    layout = Layout(LayoutSpec(3, 2, (1, 1, 2), (0, 1, 1)), CPU)
    batch = Sampler(trajectories, 1).draw(layout, 1, Mix())
    names = tokens_to_words()
    words = [names[token] for token in batch.tokens[0].tolist()]
    messages: list[dict[str, object]] = []
    for turn in range(3):
        for number in range(2):
            places = layout.words[2 * turn + number].tolist()
            question, answer = " ".join(words[p] for p in places[:4]), " ".join(words[p] for p in places[4:])
            content: object = question
            if number == 0:
                step = words[int(layout.steps[turn])]
                content = [{"type": "text", "text": step}, {"type": "image"}, {"type": "text", "text": question}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text.replace("<|image_pad|>", " ".join(["<|image_pad|>"] * 126))).input_ids
    assert batch.tokens[0, : len(ids)].tolist() == ids


@pytest.mark.slow
def test_a_branch_is_computed_as_if_it_were_the_trunk(trajectories: Trajectories) -> None:
    model = Model(randomized(TINY), CPU)
    rows = torch.arange(2)
    layout = Layout(LayoutSpec(2, 1, (1, 2), (0, 1)), CPU)
    batch = Sampler(trajectories, 7, gaps=False).draw(layout, 2, Mix(), rows)
    interpolation = model.tables.interpolations["aligned"]
    with torch.no_grad():
        branched = model.logits(layout, bias_of(layout, torch.float32), batch, interpolation)
        # The last screen's second branch (unit 4), put where the trunk's last question (unit 1) stands.
        alone = Batch(**{name: getattr(batch, name).clone() for name in Batch.__dataclass_fields__})
        alone.tokens[:, layout.words[1]] = batch.tokens[:, layout.words[4]]
        moved = model.logits(layout, bias_of(layout, torch.float32), alone, interpolation)
    assert (moved[:, 1] - branched[:, 4]).abs().max() < 1e-4
    assert (moved[:, 1] - branched[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "view"),
    [
        (LayoutSpec(1, 1, (9,)), View()),
        (LayoutSpec(1, 1, (1,), (), (2, 2)), View(30, 0.0)),
        (LayoutSpec(1, 1, (1,), (), (2, 2)), View(30, 1.0)),
        (LayoutSpec(1, 1, (3,), (), (3, 4)), View()),
        (LayoutSpec(1, 1, (7,), (), (5, 8)), View()),
        (LayoutSpec(4, 1, (2, 3, 4, 7), (0, 1, 0, 1)), View()),
        (LayoutSpec(6, 2, (1,) * 6, (1,) * 6), View()),
    ],
    ids=["single", "letter", "letter-anywhere", "widget", "part", "four", "six"],
)
def test_every_question_is_true(trajectories: Trajectories, spec: LayoutSpec, view: View) -> None:
    """Against the language's own questions about the same screens, put where the window is shown."""
    layout = Layout(spec, CPU)
    sampler = Sampler(trajectories, 11)
    names = tokens_to_words()
    screens = [world.screens(stream("validation", name, 0), 6) for name, world in WORLDS.items()]
    for _ in range(4):
        batch = sampler.draw(layout, 2, Mix() if spec.screens > 1 else SINGLE, torch.arange(2), view)
        for row in range(2):
            steps = [int(names[t].removeprefix("step")) for t in batch.tokens[row, layout.steps].tolist()]
            assert steps == list(range(steps[0], steps[0] + spec.screens)) and steps[-1] <= 12
            known = _first_screen(batch, row, trajectories)
            shown = [_shifted(s, batch, row) for s in screens[row][known : known + spec.screens]]
            for unit, turn in enumerate(layout.unit_turns.tolist()):
                words = [names[t] for t in batch.tokens[row, layout.words[unit]].tolist()]
                question, answer = " ".join(words[:4]), " ".join(words[4:])
                targets = [names[t] for t in batch.targets[row, unit].tolist()]
                assert targets == [*words[4:], "<|im_end|>"]
                kind, back = int(batch.kinds[row, unit]), int(batch.back[row, unit])
                candidates = _candidates(shown, turn, steps[0], kind, back)
                match = [q for q in candidates if q.text == question]
                assert any(is_correct(q, answer) for q in match), (question, answer)
                if kind in (CLICK, RECALL):
                    assert tuple(batch.boxes[row, unit].tolist()) in {q.box for q in match}
                if spec.window != GRID:
                    _assert_in_view(batch, row, unit, spec.window, view.held)


def _shifted(screen: Any, batch: Batch, row: int) -> Screen:
    """The screen with its widgets where the first screen's window shows them."""
    down, right = batch.shift[row, 0].tolist()
    widgets = tuple(
        Widget((w.box[0] + right, w.box[1] + down, *w.box[2:]), w.colour, w.letter, "filled", 22)
        for w in screen.widgets
    )
    return Screen(screen.width, screen.height, Background((0, 0, 0), ()), widgets)


def _first_screen(batch: Batch, row: int, trajectories: Trajectories) -> int:
    """Which screen of the trajectory the sequence starts with, by its pixels."""
    first = int(batch.shown[row, 0, 0])
    down, right = batch.shift[row, 0].tolist()
    top, left = 32 * (first // 14) - down, 32 * (first % 14) - right
    height, width = (
        32 * len(set((batch.shown[row, 0] // 14).tolist())),
        32 * len(set((batch.shown[row, 0] % 14).tolist())),
    )
    cut = trajectories.pixels[row, :, top : top + height, left : left + width]
    found = [i for i, pixels in enumerate(cut) if torch.equal(batch.patches[row, 0], by_token(pixels))]
    return found[0]


def _candidates(shown: list[Any], turn: int, first_step: int, kind: int, back: int) -> list[Question]:
    if kind == READ_BACK:
        target = possible_questions(shown, turn - back, first_step, "read")
        tag = step_name(first_step, turn - back)
        return [Question(q.text.replace("here", tag), q.answer, q.box, back, q.moved) for q in target]
    return [q for q in possible_questions(shown, turn, first_step, KINDS[kind]) if q.back == back]


def _assert_in_view(batch: Batch, row: int, unit: int, window: tuple[int, int], held: int | None) -> None:
    """The whole widget, or its middle where only that has to be."""
    x, y, width, height = batch.boxes[row, unit].tolist()
    if held is not None:
        x, y, width, height = x + width // 2 - held // 2, y + height // 2 - held // 2, held, held
    shown = set(batch.shown[row, 0].tolist())
    assert len(shown) == window[0] * window[1]
    for corner in ((x, y), (x + width - 1, y + height - 1)):
        assert corner[1] // 32 * 14 + corner[0] // 32 in shown


def test_letters_in_the_middle_stand_in_the_middle(trajectories: Trajectories) -> None:
    layout = Layout(LayoutSpec(1, 1, (), (), (2, 2)), CPU)
    batch = Sampler(trajectories, 4).draw(layout, 64, Mix(0, 1, 0, 0, first=0.0), None, View(30, 0.0))
    left, top, width, height = batch.boxes[:, 0].unbind(-1)
    first = batch.shown[:, 0, 0]
    away = torch.stack([left + width // 2 - 32 * (first % 14) - 32, top + height // 2 - 32 * (first // 14) - 32])
    assert (away == 0).all(0).float().mean() > 0.6, "only the screen's edges move it away"
    assert away.abs().max() <= 17
    assert (batch.weights == torch.tensor([0.0, 1.0, 0.0])).all()


def test_each_world_has_its_share(trajectories: Trajectories) -> None:
    parts = trajectories.part(0, 1), trajectories.part(1, 2)
    for part in parts:
        part.num_filled = 1
    sampler = Sampler(trajectories, 6, parts=parts)
    layout = Layout(LayoutSpec(1, 1, (), (), (2, 2)), CPU)
    counts = [int(sampler.draw(layout, 400, SINGLE, None, View(pages=share)).rows.sum()) for share in (0.0, 0.5, 1.0)]
    assert counts[0] == 0 and 150 < counts[1] < 250 and counts[2] == 400


def test_recalls_ask_rather_for_what_has_moved(trajectories: Trajectories) -> None:
    layout = Layout(LayoutSpec(6, 1, (0, 0, 0, 0, 0, 40)), CPU)
    batch = Sampler(trajectories, 2).draw(layout, 8, Mix(0, 0, 1, 0))
    last = layout.unit_turns == 5
    assert set(batch.kinds[:, last].flatten().tolist()) == {RECALL}
    back = batch.back[:, last].flatten()
    assert sorted(set(back.tolist())) == [1, 2, 3, 4, 5]
    assert torch.bincount(back)[1:].float().std() < 15


def test_gaps_move_later_turns_only_forward(trajectories: Trajectories) -> None:
    layout = Layout(LayoutSpec(3, 1, (1, 1, 1)), CPU)
    plain = Sampler(trajectories, 3, gaps=False).draw(layout, 6, Mix(), torch.zeros(6, dtype=torch.int64))
    moved = Sampler(trajectories, 3).draw(layout, 6, Mix(), torch.zeros(6, dtype=torch.int64))
    shift = moved.positions - plain.positions
    assert (shift[:, 0] == shift[:, 1]).all() and (shift[:, 0] == shift[:, 2]).all()
    by_turn = [shift[:, 0, layout.turns == turn] for turn in range(3)]
    for turn in by_turn:
        assert (turn == turn[:, :1]).all()
    assert (by_turn[1][:, 0] >= by_turn[0][:, 0]).all() and (by_turn[2][:, 0] >= by_turn[1][:, 0]).all()
    assert (shift != 0).any()


def test_right_and_wrong_answers_by_hand() -> None:
    def words(*names: str) -> list[int]:
        return [WORD[name] for name in names]

    targets = torch.tensor([[words("x5", "y4", "<|im_end|>")] * 5 + [words("red", "K", "<|im_end|>")] * 2])
    predicted = torch.tensor(
        [
            [
                words("x5", "y4", "<|im_end|>"),
                words("x7", "y3", "<|im_end|>"),  # pixel 60, 28: inside
                words("x8", "y4", "<|im_end|>"),  # pixel 68: right of the box
                words("y5", "y4", "<|im_end|>"),
                words("x5", "red", "<|im_end|>"),
                words("red", "K", "step1"),
                words("red", "L", "<|im_end|>"),
            ]
        ]
    )
    kinds = torch.tensor([[CLICK, RECALL, CLICK, CLICK, CLICK, READ, READ]])
    zeros, weights = torch.zeros(1, 7, dtype=torch.int64), torch.ones(1, 7, 3)
    boxes = torch.tensor([[[24, 24, 40, 28]] * 7])
    batch = Batch(zeros, zeros, zeros, zeros, targets, weights, kinds, zeros, boxes, zeros[0], zeros)
    assert is_right(batch, predicted)[0].tolist() == [True, True, False, False, False, True, False]
    tally = Tally()
    tally.add(batch, predicted)
    assert tally.asked["click"] == 4 and tally.right["click"] == 1 and tally.share("read") == 0.5


def test_streams_of_training_validation_and_tests_never_meet() -> None:
    texts = {stream(purpose, world, 5).random() for purpose in ("training", "validation") for world in WORLDS}
    assert len(texts) == 4
    first = held_out("panels", 1, CPU)
    pixels, _ = draw("training", "panels", 0)
    assert not torch.equal(first.pixels[0], torch.from_numpy(pixels))


def test_interpolations_differ_and_are_weights() -> None:
    aligned, centred = interpolate(aligned=True), interpolate(aligned=False)
    for weights in (aligned, centred):
        assert weights.shape == (504, 1024) and torch.allclose(weights.sum(1), torch.ones(504), atol=1e-5)
    assert aligned[0, 0] == 1 and (aligned - centred).abs().max() > 0.2


@pytest.mark.slow
def test_workers_draw_what_their_seeds_say() -> None:
    pool = Pool(["panels", "pages"], 1, 100)
    try:
        made = Trajectories.empty(2, CPU)
        pool.start()
        pool.fill(made, 2, 60)
    finally:
        pool.close()
    for index, (world, seed) in enumerate((("panels", 100), ("pages", 101))):
        pixels, widgets = draw("training", world, seed)
        assert torch.equal(made.pixels[index], torch.from_numpy(pixels))
        assert torch.equal(made.widgets[index], torch.from_numpy(widgets).long())


def test_adamw_is_torchs() -> None:
    weights = Weights(TINY, 0, torch.float32, CPU)
    matrices = weights.flat[: weights.num_matrix].clone().requires_grad_()
    others = weights.flat[weights.num_matrix :].clone().requires_grad_()
    groups = [{"params": [matrices], "weight_decay": 0.05}, {"params": [others], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-8)
    ours = AdamW(weights)
    ours.rate.fill_(1e-3)
    for seed in range(3):
        gradient = torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(seed))
        clipped = gradient / gradient.norm()
        matrices.grad, others.grad = clipped[: weights.num_matrix].clone(), clipped[weights.num_matrix :].clone()
        reference.step()
        ours.step(gradient)
    expected = torch.cat([matrices, others]).detach()
    assert (weights.flat - expected).abs().max() < 1e-6


def test_a_step_without_a_finite_gradient_changes_nothing_but_decay() -> None:
    weights = Weights(TINY, 0, torch.float32, CPU)
    before = weights.flat.clone()
    optimizer = AdamW(weights)
    optimizer.rate.fill_(1e-3)
    gradient = torch.ones_like(weights.flat)
    gradient[5] = torch.nan
    optimizer.step(gradient)
    assert (weights.flat - before).abs().max() <= 1e-3 * 0.05 * before.abs().max()


@pytest.mark.slow
def test_the_loss_falls(trajectories: Trajectories) -> None:
    weights = Weights(TINY, 0, torch.float32, CPU)
    optimizer = AdamW(weights)
    layout = Layout(LayoutSpec(1, 1, (1,), (), (3, 4)), CPU)
    trainer = Trainer(Model(weights, CPU), optimizer, layout, None)
    sampler = Sampler(trajectories, 0)
    optimizer.rate.fill_(2e-3)
    losses = [float(trainer.step(sampler.draw(layout, 8, SINGLE), "aligned").loss) for _ in range(60)]
    assert sum(losses[-5:]) / 5 < 0.7 * sum(losses[:5]) / 5, losses


@pytest.mark.slow
def test_what_is_saved_loads_and_generates(tmp_path: Path) -> None:
    weights = randomized(TINY)
    save(weights, tmp_path / "model", MODEL)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    processor = Qwen2VLImageProcessor.from_pretrained(tmp_path / "model")
    state, saved = weights.state(), model.state_dict()
    assert set(state) == set(saved)
    assert all(torch.equal(saved[name], value.to(torch.bfloat16).float()) for name, value in state.items())
    visual = processor(
        images=[PANELS.render(PANELS.screens(stream("validation", "panels", 1), 1)[0])], return_tensors="pt"
    )
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "click red K here"}]}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", " ".join(["<|image_pad|>"] * 126))
    ids = tokenizer(text, return_tensors="pt").input_ids
    types = (ids == model.config.image_token_id).int()
    made = model.generate(input_ids=ids, mm_token_type_ids=types, max_new_tokens=3, do_sample=False, **visual)
    assert made.shape[1] > ids.shape[1]


def test_whitening_gives_components_of_one_size(trajectories: Trajectories) -> None:
    patches = by_token(trajectories.pixels[:, :2]).reshape(-1, 768)
    kernel, bias = whitening(patches, 64)
    parts = (patches.float() / 127.5 - 1) @ kernel.T + bias
    covariance = torch.cov(parts.T)
    assert parts.mean(0).abs().max() < 1e-3
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-2
    assert covariance.diag().max() < 1.01 and covariance.diag()[0] > 0.99 and covariance.diag()[-1] > 0.3
    weights = Weights(TINY, 0, torch.float32, CPU)
    weights.whiten(patches)
    leaf = weights.leaves["model.visual.patch_embed.proj.weight"]
    assert torch.equal(leaf.detach().sum(2).flatten(1), kernel)


def test_heads_of_the_language_model_start_as_copies() -> None:
    state = Weights(Sizes(), 0, torch.float32, CPU).state()
    at = "model.language_model.layers.3.self_attn."
    value = state[f"{at}v_proj.weight"].view(4, 1, 64, 256).expand(-1, 2, -1, -1).reshape(512, 256)
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    copied = x @ value.T @ state[f"{at}o_proj.weight"].T
    assert torch.cosine_similarity(copied, x).min() > 0.6


def test_the_shipped_size_is_within_18_megabytes() -> None:
    weights = Weights(Sizes(), 0, torch.float32, CPU)
    assert 8_000_000 < weights.flat.numel() <= 9_000_000
    with torch.device("meta"):
        config = {k: v for k, v in Sizes().hf_config().items() if k != "architectures"}
        reference = AutoModelForImageTextToText.from_config(Qwen3VLConfig(**config))
    assert {name: tuple(value.shape) for name, value in reference.state_dict().items()} == Sizes().shapes()


def test_stages_end_by_their_goals_or_by_time() -> None:
    stage = Stage("one", (), (("read", 0.9), ("click", 0.5)), 0.3)
    tally = Tally()
    tally.asked.update(read=10, click=10)
    tally.right.update(read=9, click=4)
    assert not stage.is_over(tally, 0.29) and stage.is_over(tally, 0.3)
    tally.right.update(click=1)
    assert stage.is_over(tally, 0.0)
    assert [stage.latest for stage in STAGES] == sorted(stage.latest for stage in STAGES) and STAGES[-1].latest == 1


@pytest.mark.slow
def test_a_short_run_saves_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tinygui.training.__main__ import main

    out = tmp_path / "model"
    main([str(out), "--seconds", "4", "--device", "cpu", "--workers", "1", "--pool", "3", "--held-out", "1",
          "--scale", "0.01"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "held-out panels" in printed and "held-out pages" in printed and "saved to" in printed
    assert (out / "config.json").exists()
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) < 18_000_000
