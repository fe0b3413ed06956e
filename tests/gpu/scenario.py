"""Conversations about the sample screenshots, with forks: the same on every engine, so that engines can be compared."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.engine.conversation import Answer, Chat
from tests.engine.harness import TestEngine
from tests.engine.masked_reference import read_drops

SAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data" / "samples"
NUM_CONVERSATIONS = 3
NUM_TURNS = 5
FORK_AFTER = 3
NUM_ANSWER = 3
"""Two words and the end of the turn: the next turn continues exactly what the tree holds."""
NUM_LONG = 48
"""Tokens of a last request that decodes for a while."""
GAP_S = 0.05
"""Seconds between prompts that interrupt it."""
_SCREEN = " <|vision_start|><|image_pad|><|vision_end|> "


@dataclass(frozen=True)
class Said:
    """One request of the scenario.

    Attributes:
        rid: Its name.
        tokens: What was generated.
        logprobs: Of these.
        cached: Tokens of the prompt that the tree had.
        prompt_len: Tokens of the prompt.
    """

    rid: str
    tokens: list[int]
    logprobs: list[float]
    cached: int
    prompt_len: int


def load_turns() -> list[list[tuple[str, str, str, Image.Image]]]:
    """For each conversation its turns: step, question, another question, screenshot."""
    trajectories = json.loads((SAMPLES / "trajectories.json").read_text(encoding="utf-8"))[:NUM_CONVERSATIONS]
    return [
        [
            (
                turn["step"],
                turn["questions"][-1]["question"],
                turn["questions"][0]["question"],
                Image.open(SAMPLES / turn["image"]).convert("RGB"),
            )
            for turn in trajectory["turns"][: NUM_TURNS + 1]
        ]
        for trajectory in trajectories
    ]


def ask(chat: Chat, step: str, question: str, image: Image.Image) -> Chat:
    """A turn as the model was trained to read it."""
    text = f"<|im_start|>user  {step} {_SCREEN} {question} <|im_end|><|im_start|>assistant "
    return Chat(chat.text + text, (*chat.images, image))


def play(engine: TestEngine) -> list[Said]:
    """All conversations: three turns, a fork whose branches are asked together, two more turns, then a long answer."""
    said: list[Said] = []
    for number, turns in enumerate(load_turns()):
        chat = Chat()
        for turn, (step, question, _, image) in enumerate(turns[:FORK_AFTER]):
            chat = ask(chat, step, question, image)
            chat = _heard(said, chat, f"c{number}-t{turn}", engine.answer(chat, NUM_ANSWER, **_named(number, turn)))
        branches = [chat, chat]
        for turn, (step, question, other, image) in enumerate(turns[FORK_AFTER:NUM_TURNS], FORK_AFTER):
            asked = [ask(branch, step, words, image) for branch, words in zip(branches, (question, other), strict=True)]
            rids = [f"c{number}-t{turn}-b{branch}" for branch in range(2)]
            answers = engine.answer_together(asked, NUM_ANSWER, rids=rids, logprob_from=-1)
            pairs = zip(asked, rids, answers, strict=True)
            branches = [_heard(said, one, rid, answer) for one, rid, answer in pairs]
        step, question, _, image = turns[-1]
        last = ask(branches[0], step, question, image)
        _heard(said, last, f"c{number}-long", engine.answer(last, NUM_LONG, logprob_from=-1, rid=f"c{number}-long"))
        _interrupt(engine, said, ask(branches[1], step, question, image), number)
    return said


def _interrupt(engine: TestEngine, said: list[Said], chat: Chat, number: int) -> None:
    """A long answer over a pruned history, while prompts without screenshots come and go.

    Nobody asks for log-probabilities here: SGLang mixes no batch that must return some. The prompts share nothing, so
    that what they find in the tree does not depend on their moment.
    """
    texts = [Chat().ask(f"here click {word}") for word in ("red", "blue", "green")]
    rids = [f"c{number}-beside", *(f"c{number}-text{index}" for index in range(len(texts)))]

    async def together() -> list[Answer]:
        tasks = [await engine.queue(chat, NUM_LONG, rid=rids[0])]
        for text, rid in zip(texts, rids[1:], strict=True):
            await asyncio.sleep(GAP_S)
            tasks.append(await engine.queue(text, NUM_ANSWER, rid=rid, extra_key=rid))
        return list(await asyncio.gather(*tasks))

    for one, rid, answer in zip([chat, *texts], rids, engine.run(together()), strict=True):
        _heard(said, one, rid, answer)


def kept_tokens(trace: Path) -> dict[str, list[list[int]]]:
    """What every prune kept, by request, screenshot and segment: one list of positions for each layer."""
    return {f"{d.rid} f{d.frame} {d.start}-{d.end}": d.kept.tolist() for d in read_drops(trace)}


def as_json(said: Sequence[Said], kept: dict[str, list[list[int]]], **more: Any) -> str:
    """A run's result as text."""
    return json.dumps({"said": [asdict(one) for one in said], "kept": kept, **more}, separators=(",", ":"))


def _named(number: int, turn: int) -> dict[str, Any]:
    return {"rid": f"c{number}-t{turn}", "logprob_from": -1}


def _heard(said: list[Said], chat: Chat, rid: str, answer: Answer) -> Chat:
    said.append(Said(rid, list(answer.token_ids), list(answer.logprobs), answer.cached, answer.prompt_len))
    return chat.reply(answer.text.strip())
