"""The page of `star`'s ablations: both protocols, both models, both worlds, in one command.

    python -m tinygui.ablations --out ../out/ablations --page ../docs/ablations.md

Questions are written, `star-kv eval suite` asks them, one folder for each model and world, and the page is made of the
answers. A run that stopped goes on where it was; ``--max-seconds`` ends each suite early, and the page says how many
questions were asked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.statistics import p_text
from star_kv_sglang.tools.eval.suite.page import ablations
from star_kv_sglang.tools.eval.suite.records import load_settings
from star_kv_sglang.tools.eval.suite.tables import SuiteResults
from star_kv_sglang.tools.eval.suite.variants import ABLATIONS, FULL, PROTOCOLS, REFERENCE
from star_kv_sglang.tools.markdown import markdown_table

HERE = Path(__file__).resolve().parent
MODELS = {"first": HERE / "model", "second": HERE / "model2"}
WORLDS = ("panels", "pages")
BUDGETS = "0.2,0.1,0.05"
QUESTIONS_PER_TRAJECTORY = 12


def play(out: Path, *, questions: int, jobs: int, max_seconds: float | None) -> None:
    """Ask every variant what is still to be asked.

    Args:
        out: Folder of the questions and of a suite for each model and world.
        questions: In each cell, at least.
        jobs: Engines at a time.
        max_seconds: No trajectory of a suite begins later than this.

    Raises:
        subprocess.CalledProcessError: A suite has failed, and has said why.
    """
    count = -(-questions // QUESTIONS_PER_TRAJECTORY)
    variants = [FULL, REFERENCE, *(one.name for one in ABLATIONS if one.of == REFERENCE)]
    for world in WORLDS:
        file = out / f"{world}-{count}.json"
        if not file.exists():
            _run("tinygui.suite_questions", str(file), "--world", world, "--count", str(count))
        for name, model in MODELS.items():
            limit = [] if max_seconds is None else ["--max-seconds", str(max_seconds)]
            told = ["--model", str(model), "--questions", str(file), "--out", str(out / f"{name}-{world}")]
            share = ["--policies", ",".join(variants), "--budgets", BUDGETS, "--traced", "0", "--jobs", str(jobs)]
            _run("star_kv_sglang.cli.main", "eval", "suite", *told, *share, *limit)


def _run(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


def page(out: Path) -> str:
    """The page, of what was answered so far."""
    parts = [
        "# What each part of `star` does",
        "`star` with one part changed, against `star` as it is, on the questions that both were asked: right answers, "
        "mean over the suite's tasks ([results](results.md) says what they are), questions lost and gained, and the "
        "exact paired p-value. Written by `python -m tinygui.ablations` (in `examples`).",
    ]
    for name in MODELS:
        for world in WORLDS:
            folder = out / f"{name}-{world}"
            if (folder / "cells").exists():
                parts += _of_folder(folder, f"{name.capitalize()} model, {world}")
    return "\n\n".join(parts) + "\n"


def _of_folder(folder: Path, title: str) -> Iterator[str]:
    results, settings = SuiteResults(folder), load_settings(folder)
    yield f"## {title}"
    yield f"Machine: {settings['machine']}; {settings['versions']}; engines in {settings['dtype']}."
    for protocol in PROTOCOLS:
        rows = [
            [
                one.result.variant.what,
                f"{100 * one.result.cell.budget:g} %",
                str(one.test.common),
                f"{one.test.mean:.3f}",
                f"{one.test.other:.3f}",
                f"{one.test.lost} / {one.test.gained}",
                p_text(one.test.p_value),
            ]
            for one in ablations(results, REFERENCE, protocol)
        ]
        if rows:
            yield f"### {protocol.value.capitalize()}{_full(results, protocol)}"
            heads = ("changed", "budget", "questions", "right", "`star`", "lost / gained", "p")
            yield markdown_table(heads, rows)


def _full(results: SuiteResults, protocol: Protocol) -> str:
    full = results.get(FULL, 1.0, protocol)
    return "" if full is None else f"; the full cache: {full.mean:.3f}"


def main() -> None:
    """Asks, and writes the page."""
    parser = argparse.ArgumentParser(description="Ablate star, and write the page of it.")
    parser.add_argument("--out", type=Path, required=True, help="folder of questions and answers")
    parser.add_argument("--page", type=Path, required=True, help="the Markdown file")
    parser.add_argument("--questions", type=int, default=1000, help="in each cell, at least")
    parser.add_argument("--jobs", type=int, default=1, help="engines at a time")
    parser.add_argument("--max-seconds", type=float, help="begin no trajectory of a suite after this time")
    parser.add_argument("--only-page", action="store_true", help="ask nothing")
    args = parser.parse_args()
    if not args.only_page:
        args.out.mkdir(parents=True, exist_ok=True)
        play(args.out, questions=args.questions, jobs=args.jobs, max_seconds=args.max_seconds)
    args.page.write_text(page(args.out), encoding="utf-8")
    print(args.page)


if __name__ == "__main__":
    main()
