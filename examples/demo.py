"""Parallel branches of a GUI agent on a real SGLang server: the full KV cache beside STaR-KV at a fifth of it.

``make demo``, or ``python examples/demo.py``. It starts the server twice, sends both the same trajectories, prints one
table, and writes a page with the same table and with two screenshots on which the kept tokens are drawn. With
``--compare-image-cache`` it starts the server a third time: STaR-KV without the cache of processed screenshots.
"""

from __future__ import annotations

import io
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from star_kv_sglang.cpu_mode import is_gpu_present
from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.cli.rollout import comparison_table, run_with_progress
from star_kv_sglang.tools.report.kept import LEGEND, draw_kept
from star_kv_sglang.tools.report.page import Chart, Exchange, Line, Picture, render_page
from star_kv_sglang.tools.report.trace import PruneTrace, TraceError, last_traces, live_tokens
from star_kv_sglang.tools.rollout.runner import Rollout
from star_kv_sglang.tools.rollout.server import serving
from star_kv_sglang.tools.rollout.summary import Summary, compare
from star_kv_sglang.tools.rollout.trajectory import Trajectory, save_trajectories
from tinygui.trajectories import branching

MODEL = Path(__file__).parent / "tinygui" / "model"
POOL_TOKENS = 20_000
DRAWN_BRANCH = 0


@dataclass(frozen=True)
class Contender:
    """One of the servers: its column's heading and its flags."""

    name: str
    flags: tuple[str, ...]


def contenders(budget: float, trace_dir: Path, *, compare_image_cache: bool) -> list[Contender]:
    """The full cache, STaR-KV with traces of what it prunes and, where asked for, STaR-KV without the image cache."""
    star = ("--kv-policy", "star", "--kv-budget", str(budget))
    traced = ("--kv-policy-config", json.dumps({"trace_dir": str(trace_dir.resolve())}))
    others = [Contender(f"star {budget:g}, no image cache", (*star, "--kv-image-cache-mb", "0"))]
    return [
        Contender("full", ("--kv-policy", "full")),
        Contender(f"star {budget:g}", (*star, *traced)),
        *(others if compare_image_cache else []),
    ]


def run_contender(
    contender: Contender, trajectories: list[Trajectory], out: Path, console: Console
) -> tuple[Rollout, Summary]:
    """Serves, runs all branches, and stops the server."""
    console.rule(f"[bold]{contender.name}")
    with _server(contender, out, console) as url:
        return run_with_progress(trajectories, url, out, name=contender.name, console=console)


@contextmanager
def _server(contender: Contender, out: Path, console: Console) -> Iterator[str]:
    """A running server; a spinner turns while it starts."""
    pool = ("--max-total-tokens", str(POOL_TOKENS), "--enable-metrics")
    flags = ("--model-path", str(MODEL), *pool, *contender.flags)
    with console.status("Starting the server") as status:

        def on_wait(seconds: float) -> None:
            status.update(f"Starting the server (SGLang loads, {seconds:.0f} s)")

        with serving(flags, out / "server.log", on_wait=on_wait) as url:
            status.stop()
            console.print(f"Server is ready at {url}; its log is {out / 'server.log'}", soft_wrap=True)
            yield url


def kept_pictures(rollout: Rollout, trajectories: Sequence[Trajectory], trace_dir: Path) -> list[Picture]:
    """The first and the last pruned screenshot of one branch, with the tokens that stay at its end.

    Raises:
        TraceError: fewer than two screenshots of the branch were pruned.
    """
    ids = [a.completion.request_id for a in rollout.answers if a.branch == DRAWN_BRANCH]
    traces = last_traces(trace_dir, ids)
    if len(traces) < 2:
        raise TraceError(
            f"{trace_dir}: holds traces of {len(traces)} screenshots of branch {DRAWN_BRANCH}, two are needed; "
            "the server's log says what was pruned"
        )
    turns = trajectories[DRAWN_BRANCH].turns
    return [_picture(traces[index], turns[index].image_png, index) for index in (min(traces), max(traces))]


def _picture(trace: PruneTrace, png: bytes, turn: int) -> Picture:
    start, end = trace.segment
    num_layers, num_kept = trace.kept.shape
    caption = f"Each of the {num_layers} layers keeps {num_kept} of the {end - start} visual tokens. {LEGEND}"
    with Image.open(io.BytesIO(png)) as screenshot:
        drawn = draw_kept(screenshot, trace.kept_fraction())
        return Picture(drawn, f"The screen of turn {turn + 1}", caption, screenshot.convert("RGB"))


def tokens_over_turns(rollout: Rollout, trace_dir: Path) -> Chart:
    """How many tokens of the drawn branch's prompt each turn leaves in the cache, with and without pruning."""
    answers = [answer for answer in rollout.answers if answer.branch == DRAWN_BRANCH]
    whole = [answer.completion.prompt_tokens for answer in answers]
    live = live_tokens(
        trace_dir, [(answer.completion.request_id, size) for answer, size in zip(answers, whole, strict=True)]
    )
    last = {answer.turn: number for number, answer in enumerate(answers)}
    caption = "Tokens of one branch's prompt when its last question of a turn has been answered and pruned."
    return Chart(
        "Tokens over turns",
        caption,
        [
            Line("full cache", "shared", [whole[number] for number in last.values()]),
            Line("STaR-KV: live", "private", [live[number] for number in last.values()]),
        ],
    )


def exchanges(rollouts: Sequence[Rollout]) -> list[Exchange]:
    """What the drawn branch was asked, and what each server answered."""
    by_key = [{answer.key: answer for answer in rollout.answers} for rollout in rollouts]
    return [
        Exchange(
            answer.turn + 1,
            answer.question.text,
            answer.question.answer,
            [(answers[answer.key].completion.text, answers[answer.key].correct) for answers in by_key],
        )
        for answer in rollouts[0].answers
        if answer.branch == DRAWN_BRANCH
    ]


def versions() -> list[tuple[str, str]]:
    """What took part, and in which version."""
    named = [(name, version(name)) for name in ("star-kv-sglang", "sglang", "torch", "transformers")]
    device = f"{platform.machine()}, {'GPU' if is_gpu_present() else 'CPU'}"
    return [*named, ("python", platform.python_version()), ("machine", device), ("model", "examples/tinygui/model")]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html and all that was measured.")] = Path("out/demo"),
    branches: Annotated[int, typer.Option(min=2)] = 8,
    turns: Annotated[int, typer.Option(min=3, max=12)] = 6,
    budget: Annotated[float, typer.Option(help="Share of a branch's own visual tokens that stays.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The screens follow from it.")] = 0,
    compare_image_cache: Annotated[
        bool, typer.Option("--compare-image-cache", help="Run STaR-KV once more, without its image cache.")
    ] = False,
) -> None:
    """Run the branches on each server, compare, and write the report."""
    console = Console()
    trajectories = branching(seed, num_branches=branches, num_turns=turns)
    save_trajectories(trajectories, out / "trajectories" / "trajectories.json")
    trace_dir = _empty_folder(out / "traces")
    servers = contenders(budget, trace_dir, compare_image_cache=compare_image_cache)
    results = [
        run_contender(one, trajectories, out / one.name.replace(",", "").replace(" ", "-"), console) for one in servers
    ]
    rollouts, summaries = [rollout for rollout, _ in results], [summary for _, summary in results]
    rows = compare(summaries, rollouts)
    console.rule("[bold]side by side")
    console.print(comparison_table(summaries, rows))
    page = render_page(
        title="STaR-KV inside SGLang",
        setup=(f"{branches} branches of {turns} turns share their task and first screenshot (seed {seed}).",),
        columns=[summary.name for summary in summaries],
        rows=rows,
        pictures=kept_pictures(rollouts[1], trajectories, trace_dir),
        chart=tokens_over_turns(rollouts[1], trace_dir),
        exchanges=exchanges(rollouts),
        versions=versions(),
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)
    if not compare_image_cache:
        console.print("--compare-image-cache adds a column without the cache of processed screenshots.")


def _empty_folder(folder: Path) -> Path:
    """The folder, without the traces of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for trace in folder.glob("*.npz"):
        trace.unlink()
    return folder


if __name__ == "__main__":
    try:
        typer.run(demo)
    except StarKVError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
