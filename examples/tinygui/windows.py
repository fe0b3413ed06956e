"""What a window over the screenshots does to right answers, on the real engine.

    python -m tinygui.windows --out ../out/windows --count 100 --page ../docs/window-answers.md

A trajectory is played turn by turn, and its last turn asks about earlier screens. Every way to hold the conversation is
asked the same questions, by one engine, with wishes in the requests: the whole history; the last N screenshots as a
client sends them, computed anew; the same prompts recognised; the window by parameter, for a prompt sees the window of
the turn before and its own screenshot, one screenshot narrower, so that a question sees as much as the client's, and
as wide; the whole history at a budget of as many tokens. A run that stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.eval.statistics import p_text, paired_test
from star_kv_sglang.tools.markdown import markdown_table
from tinygui.ablations import MODELS
from tinygui.engine_recall import GREEDY, play_and_recall, prompt_of, start_engine
from tinygui.recall import RecallCase, chat_messages, recall_cases
from tinygui.worlds import WORLDS

NUM_SCREENS = 6
FIRST_SEED = 8_500_000
KINDS = ("inside", "oldest inside", "dropped")
EACH = tuple((kind,) for kind in KINDS)
TOGETHER = (KINDS[:2], KINDS[2:])


@dataclass(frozen=True)
class Way:
    """A way to hold a conversation.

    Attributes:
        name: As the page shows it.
        drops: The client leaves out all but the newest screenshots, with their messages.
        wishes: ``custom_params`` of every request.
        one_by_one: Questions wait for the answer before, so that nobody else uses what one of them drops.
    """

    name: str
    drops: bool
    wishes: Mapping[str, Any]
    one_by_one: bool = False


def ways(window: int) -> tuple[Way, ...]:
    """All of them; the client's last N, computed anew, is what the others are compared with."""
    whole = {"kv_budget": 1.0}
    return (
        Way(f"last {window}, computed anew", True, whole),
        Way(f"last {window}, recognised", True, {**whole, "kv_recognise_window": True}),
        Way(
            f"last {window}, recognised, one question at a time",
            True,
            {**whole, "kv_recognise_window": True},
            one_by_one=True,
        ),
        Way(f"window of {window - 1} by parameter", False, {**whole, "kv_image_window": window - 1}),
        Way(f"window of {window} by parameter", False, {**whole, "kv_image_window": window}),
        Way(f"whole history, budget {window / NUM_SCREENS:g}", False, {"kv_budget": window / NUM_SCREENS}),
        Way("whole history, nothing pruned", False, whole),
    )


def kind_of(back: int, window: int) -> str:
    """Where the screen that a question is about lies, seen from a client that sends the last ``window``."""
    return KINDS[0] if back < window - 1 else KINDS[1] if back == window - 1 else KINDS[2]


def messages_of(case: RecallCase, turn: int, question: str, first: int) -> list[dict[str, object]]:
    """The conversation up to a turn's question, without the user's messages before turn ``first``."""
    messages = chat_messages(case, turn, question)
    return [one for place, one in enumerate(messages) if one["role"] == "assistant" or place // 2 >= first]


class Player:
    """Asks one engine.

    Args:
        model: The model's folder.
        window: Screenshots that a client would send.
    """

    def __init__(self, model: Path, window: int) -> None:
        from transformers import AutoTokenizer

        self._window = window
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.engine: Any = start_engine(
            model, kv_policy="star", kv_budget=window / NUM_SCREENS, kv_recognise_windows="asked"
        )

    def ask(self, case: RecallCase, way: Way) -> list[bool]:
        """Play a trajectory and ask its recalls; whether each answer is right."""
        pictures = case.pictures()

        def request(turn: int, question: str) -> dict[str, Any]:
            first = max(0, turn + 1 - self._window) if way.drops else 0
            prompt = prompt_of(self._tokenizer, messages_of(case, turn, question, first))
            sampling = {**GREEDY, "custom_params": dict(way.wishes)}
            return {"prompt": prompt, "image_data": pictures[first : turn + 1], "sampling_params": sampling}

        return [right for _, right in play_and_recall(self.engine, case, request, one_by_one=way.one_by_one)]


def play(out: Path, model: str, world: str, *, count: int, window: int, until_s: float) -> None:
    """Ask what is still to be asked, one line of JSON for each trajectory."""
    file = out / f"{model}-{world}.jsonl"
    done = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
    cases = recall_cases(FIRST_SEED, count, num_screens=NUM_SCREENS, world=WORLDS[world])[done:]
    if not cases or time.monotonic() > until_s:
        return
    player = Player(MODELS[model], window)
    try:
        for case in cases:
            if time.monotonic() > until_s:
                return
            row = {way.name: player.ask(case, way) for way in ways(window)}
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"back": [asked.back for asked in case.recalls], "right": row}) + "\n")
    finally:
        player.engine.shutdown()


def page(out: Path, window: int) -> str:
    """The page, of what was answered so far."""
    parts = [
        "# What a window does to right answers",
        f"Questions about earlier screens at the end of {NUM_SCREENS} turns, by where the screen lies for a client "
        f"that sends the last {window}: share of right answers, and how it compares with that client's prompts "
        "computed anew (questions lost and gained, paired test over trajectories). Float32 on a CPU. "
        "Written by `python -m tinygui.windows` (in `examples`) of the answers in "
        "[benchmarks/window_answers](../benchmarks/window_answers/first-panels.jsonl).",
        "All questions of a trajectory are asked at the same moment, but for one line of each table. So a screenshot "
        "that all of them leave out can still be used by the others and is seen once more: what is recognised answers "
        "more questions about the newest dropped screenshot than a client that asks one question would see, and "
        "is distracted by it as by a longer window.",
    ]
    everything: list[Mapping[str, Any]] = []
    for model in MODELS:
        for world in WORLDS:
            file = out / f"{model}-{world}.jsonl"
            if file.exists():
                rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                parts += [f"## {model.capitalize()} model, {world}, {len(rows)} trajectories", _table(rows, window)]
                everything += rows
    parts += [f"## All together, {len(everything)} trajectories", _table(everything, window, TOGETHER)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], window: int, columns: Sequence[Sequence[str]] = EACH) -> str:
    """A line for each way, a column for each group of kinds."""
    reference, cells = ways(window)[0].name, []
    counts = [len(list(_answers(rows, reference, kinds, window))) for kinds in columns]
    for way in ways(window):
        line = [way.name]
        for kinds in columns:
            other = list(_answers(rows, way.name, kinds, window))
            share = sum(right for right, _ in other) / max(len(other), 1)
            text = f"{share:.3f}"
            if way.name != reference and other:
                base = [float(right) for right, _ in _answers(rows, reference, kinds, window)]
                test = paired_test(base, [float(right) for right, _ in other], [episode for _, episode in other])
                text += f" (-{test.num_lost} +{test.num_gained}, p {p_text(test.p_value)})"
            line.append(text)
        cells.append(line)
    heads = ["", *(f"{' or '.join(kinds)}, {count} questions" for kinds, count in zip(columns, counts, strict=True))]
    return markdown_table(heads, cells)


def _answers(
    rows: Sequence[Mapping[str, Any]], name: str, kinds: Sequence[str], window: int
) -> Iterator[tuple[bool, str]]:
    """Answers of a way to the questions of some kinds, each with its trajectory."""
    for number, row in enumerate(rows):
        for back, right in zip(row["back"], row["right"][name], strict=True):
            if kind_of(back, window) in kinds:
                yield right, str(number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks, and writes the page."""
    parser = argparse.ArgumentParser(description="What a window over the screenshots does to right answers.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--page", type=Path, help="the Markdown file")
    parser.add_argument(
        "--count", type=int, default=100, help="trajectories of each model and world, ten questions each"
    )
    parser.add_argument("--window", type=int, default=3, help="screenshots that a client sends")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="begin no trajectory later")
    args = parser.parse_args(arguments)
    if not 2 <= args.window < NUM_SCREENS:
        parser.error(f"--window {args.window}: from 2 to {NUM_SCREENS - 1}")
    args.out.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + args.max_seconds
    if args.count:
        for model in args.models.split(","):
            for world in args.worlds.split(","):
                play(args.out, model, world, count=args.count, window=args.window, until_s=until_s)
    if args.page is not None:
        args.page.write_text(page(args.out, args.window), encoding="utf-8")
        print(args.page)


if __name__ == "__main__":
    main()
