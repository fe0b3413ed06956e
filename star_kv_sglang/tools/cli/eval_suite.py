"""`star-kv eval suite`: policies against each other on trajectories, on engines that the command starts."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.suite.variants import ABLATIONS, BUDGETS, POLICIES, PROTOCOLS, chosen_variants

if TYPE_CHECKING:
    from star_kv_sglang.tools.eval.suite.conduct import Plan, Tally

_ALL_POLICIES = ",".join(POLICIES)
_ALL_PROTOCOLS = ",".join(protocol.value for protocol in PROTOCOLS)
_ALL_BUDGETS = ",".join(f"{budget:g}" for budget in BUDGETS)


def suite(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The model's folder.")],
    questions: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A trajectory file; see the docs.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; a run that stopped goes on in it.")],
    policies: Annotated[str, typer.Option(help="Policies and ablations, comma-separated.")] = _ALL_POLICIES,
    ablations: Annotated[
        bool, typer.Option(help="Behind the policies, all ablations too, at the first three budgets.")
    ] = False,
    budgets: Annotated[str, typer.Option(help="Shares of the visual tokens, the important ones first.")] = _ALL_BUDGETS,
    protocols: Annotated[str, typer.Option(help="Comma-separated.")] = _ALL_PROTOCOLS,
    trajectories: Annotated[int | None, typer.Option(min=1, help="Only the first N trajectories.")] = None,
    first: Annotated[int, typer.Option(min=1, help="Every cell gets this many before any gets more.")] = 100,
    jobs: Annotated[int, typer.Option(min=1, help="Engines at a time.")] = 1,
    at_a_time: Annotated[int | None, typer.Option(min=1, help="Trajectories in play in an engine.")] = None,
    traced: Annotated[int, typer.Option(min=0, help="Trajectories of each cell whose kept tokens are counted.")] = 10,
    max_seconds: Annotated[float | None, typer.Option(help="Begin no trajectory after this time.")] = None,
) -> None:
    """Ask trajectories' questions under policies, budgets and two protocols."""
    # Here and not above: they import torch, which other subcommands need not wait for.
    from star_kv_sglang.tools.eval.suite.conduct import Conductor, Plan, Tally
    from star_kv_sglang.tools.eval.suite.questions import load_questions
    from star_kv_sglang.tools.eval.suite.records import open_folder
    from star_kv_sglang.tools.eval.suite.served import device

    console = Console()
    asked = load_questions(questions)[:trajectories]
    variants = chosen_variants(_words(policies) + [variant.name for variant in ABLATIONS if ablations])
    shares = tuple(_budget(word) for word in _words(budgets))
    default = 32 if device() == "cuda" else 4
    plan = Plan(
        model=model.resolve(),
        questions=questions.resolve(),
        folder=out.resolve(),
        variants=tuple(variants),
        budgets=shares,
        protocols=tuple(_protocol(word) for word in _words(protocols)),
        first=first,
        jobs=jobs,
        at_a_time=at_a_time or default,
        traced=traced,
        max_seconds=max_seconds,
    )
    open_folder(plan.folder, _settings(plan, len(load_questions(questions))))
    tally = Tally()

    def on_played(cell: str, right: int, number: int) -> None:
        tally.add(cell, right, number)

    def on_note(text: str) -> None:
        console.print(text, highlight=False)

    Conductor(plan, asked, on_played, on_note).run()
    _show(tally, console)
    console.print(f"Written to {out}; star-kv eval suite-report {out} makes the page")


def suite_report(
    folder: Annotated[Path, typer.Argument(help="The folder that star-kv eval suite wrote.")],
    page: Annotated[Path, typer.Option(help="The Markdown page.")] = Path("docs/results.md"),
) -> None:
    """Write the page of results, its plots and its figures."""
    from star_kv_sglang.tools.eval.suite.page import write_page

    console = Console()
    for path in write_page(folder, page, pictures=page.parent / "img", figures=page.with_suffix(".csv")):
        console.print(str(path))


def _settings(plan: Plan, num_trajectories: int) -> dict[str, Any]:
    from star_kv_sglang.tools.eval.suite.served import engine_dtype, versions

    digest = hashlib.sha256(plan.questions.read_bytes()).hexdigest()[:16]
    return {
        "model": "/".join(plan.model.parts[-2:]),
        "questions": plan.questions.name,
        "questions_sha256": digest,
        "num_trajectories": num_trajectories,
        "machine": _machine(),
        "versions": versions(),
        "dtype": str(engine_dtype()).removeprefix("torch."),
    }


def _machine() -> str:
    from star_kv_sglang.tools.eval.suite.served import device

    if device() == "cuda":
        import torch

        return torch.cuda.get_device_name(0)
    return f"CPU, {platform.machine()}"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _protocol(word: str) -> Protocol:
    if word not in {protocol.value for protocol in Protocol}:
        raise EvalError(f"--protocols {word!r} is none of {_ALL_PROTOCOLS}")
    return Protocol(word)


def _budget(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if value not in BUDGETS:
        raise EvalError(f"--budgets {word!r} is none of {_ALL_BUDGETS}")
    return value


def _show(tally: Tally, console: Console) -> None:
    table = Table("cell", "right", "questions", "share", title="played now", title_justify="left")
    for cell, asked in tally.asked.items():
        table.add_row(cell, str(tally.right[cell]), str(asked), f"{tally.right[cell] / asked:.3f}")
    console.print(table)
