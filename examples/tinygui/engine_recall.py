"""The same questions on the real engine: history pruned turn by turn, then asked about.

``python -m tinygui.engine_recall --policy distinct --budget 0.1`` (from ``examples/``). SGLang serves the shipped model
on the CPU. Each turn sends the whole conversation, the tree still holds what earlier turns left of it, and the last
turn's recalls are sent at the same moment, so that they share the pruned history and none of them prunes it further.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.eval.suite.served import empty_cache
from star_kv_sglang.tools.rollout.scoring import is_correct
from star_kv_sglang.tools.rollout.trajectory import Question
from tinygui.accuracy import MODEL
from tinygui.recall import RecallCase, chat_messages, recall_cases
from tinygui.worlds import PANELS, WORLDS

GREEDY: Final[Mapping[str, float | int]] = {"temperature": 0, "max_new_tokens": 2}

Request = Callable[[int, str], Mapping[str, Any]]
"""What is sent for a question in a turn: arguments of ``sglang.Engine.generate``."""


def start_engine(model: Path, **policy: Any) -> Any:
    """The engine that serves a small model, with arguments of the policy."""
    if not cpu_mode.is_gpu_present():
        cpu_mode.enable()
    import sglang

    return sglang.Engine(
        **cpu_mode.cpu_engine_kwargs(
            model_path=str(model),
            dtype="float32",
            max_total_tokens=12_000,
            enable_precise_embedding_interpolation=True,
            log_level="error",
            random_seed=1,
            **policy,
        )
    )


def play_and_recall(
    engine: Any, case: RecallCase, request: Request, *, one_by_one: bool = False
) -> list[tuple[Question, bool]]:
    """Play a trajectory and ask its recalls, at the same moment or ``one_by_one``; whether each answer is right."""
    for turn, question in enumerate(case.history):
        engine.generate(**request(turn, question.text))
    recalls = [request(len(case.history), question.text) for question in case.recalls]

    async def at_once() -> list[dict[str, Any]]:
        # One request each: of a list, SGLang loses answers that come before it has begun to wait for them.
        return await asyncio.gather(*(engine.async_generate(**one) for one in recalls))

    answers = [engine.generate(**one) for one in recalls] if one_by_one else engine.loop.run_until_complete(at_once())
    empty_cache(engine)
    return [
        (question, is_correct(question, answer["text"])) for question, answer in zip(case.recalls, answers, strict=True)
    ]


def prompt_of(tokenizer: Any, messages: Sequence[Mapping[str, object]]) -> str:
    """Messages as the model's template writes them, up to its answer."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def ask(engine: Any, tokenizer: Any, case: RecallCase) -> list[tuple[Question, bool]]:
    """Play a trajectory with its whole history in every prompt, and ask its recalls."""
    pictures = case.pictures()

    def request(turn: int, question: str) -> dict[str, Any]:
        prompt = prompt_of(tokenizer, chat_messages(case, turn, question))
        return {"prompt": prompt, "image_data": pictures[: turn + 1], "sampling_params": GREEDY}

    return play_and_recall(engine, case, request)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one policy at one budget and print."""
    parser = argparse.ArgumentParser(description="Recall of pruned history on the real engine.")
    parser.add_argument("--model", type=Path, default=MODEL, help="a model's folder")
    parser.add_argument("--world", choices=list(WORLDS), default=PANELS.name)
    parser.add_argument("--policy", default="distinct")
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--policy-config", default=None, help="as --kv-policy-config of the server")
    parser.add_argument("--seed", type=int, default=8_000_000)
    parser.add_argument("--count", type=int, default=20, help="trajectories")
    parser.add_argument("--recalls", type=int, default=10, help="questions a trajectory")
    parser.add_argument("--out", type=Path, help="append a JSON line with every answer here")
    args = parser.parse_args(arguments)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    policy = {"kv_policy": args.policy}
    if args.policy != "full":
        policy |= {"kv_budget": args.budget, "kv_policy_config": args.policy_config}
    engine = start_engine(args.model, **policy)
    try:
        cases = recall_cases(args.seed, args.count, num_recalls=args.recalls, world=WORLDS[args.world])
        results: list[tuple[Question, bool]] = []
        for case in cases:
            results += ask(engine, tokenizer, case)
            print(f"{sum(ok for _, ok in results)} of {len(results)}", flush=True)
    finally:
        engine.shutdown()
    right = sum(ok for _, ok in results)
    print(f"{args.policy} {args.budget}: {right} of {len(results)} = {right / len(results):.3f}", flush=True)
    if args.out:
        row = {
            "model": args.model.name,
            "world": args.world,
            "policy": args.policy,
            "budget": args.budget,
            "config": args.policy_config,
        }
        row |= {"right": [ok for _, ok in results], "back": [question.back for question, _ in results]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
