"""`star-kv tune`: which policy and budget serve one's own model on one's own recordings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from star_kv_sglang import __version__
from star_kv_sglang.policies import REFUSED, policy_names
from star_kv_sglang.tools.eval.progress import noted_progress
from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.rollout.server import serving
from star_kv_sglang.tools.tune.actions import WORDS, agents, answer_reader
from star_kv_sglang.tools.tune.advice import Advice, advise
from star_kv_sglang.tools.tune.conduct import Plan, Serve, Watcher, answered, conduct
from star_kv_sglang.tools.tune.errors import TuneError
from star_kv_sglang.tools.tune.page import age_head, changed_turns, nats, p_value, percent, render, verdict
from star_kv_sglang.tools.tune.prompts import PromptWriter
from star_kv_sglang.tools.tune.recordings import Said
from star_kv_sglang.tools.tune.records import FULL, FullTurn, open_folder, read_turns, turn_file
from star_kv_sglang.tools.tune.replay import Replay
from star_kv_sglang.tools.tune.threads import load_threads, tasks_of

ADVICE_FILE: Final = "advice.json"
PAGE: Final = "tune.html"

tune = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@tune.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def tune_command(
    context: typer.Context,
    model_path: Annotated[str, typer.Option(help="The model, for `star-kv serve`.")],
    trajectories: Annotated[
        Path,
        typer.Option(
            help="What was recorded: a folder (or one file) of conversations, .json with OpenAI chat messages, or of "
            "requests, .jsonl with a body a line; a rollout's folder; a trajectory file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; a run that stopped goes on in it.")],
    policies: Annotated[str, typer.Option(help="Comma-separated; a server is started for each.")] = (
        "star,star-paper,snapkv,streaming"
    ),
    budgets: Annotated[str, typer.Option(help="Comma-separated shares of the visual tokens.")] = "0.4,0.2,0.1,0.05",
    max_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of turns whose action may change, for the advice.")
    ] = 0.02,
    agent: Annotated[str, typer.Option(help=f"How actions are read in answers: {', '.join(agents())}.")] = WORDS,
    kind: Annotated[TaskKind, typer.Option(help="Of the actions that a model family knows.")] = TaskKind.COMPUTER,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Clicks this near to each other are the same, as a share of the sides.")
    ] = 0.04,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="persistent: turns of a thread follow each other in the cache. stateless: each is sent whole."
        ),
    ] = Protocol.PERSISTENT,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N threads.")] = None,
    at_a_time: Annotated[int, typer.Option(min=1, help="Threads in play at a time.")] = 4,
    control: Annotated[bool, typer.Option(help="Replay the full cache twice, to see what changes by itself.")] = True,
    pictures: Annotated[int, typer.Option(min=0, help="Changed turns of each cell that the page shows.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 600.0,
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take to start.")] = 1800.0,
) -> None:
    """Replay recordings with the full cache and with policies and budgets, and say which to serve with. No labels.

    Words that are no options of this command go to `star-kv serve`, for example --mem-fraction-static 0.8.
    """
    console = Console()
    refuse_own_flags(context.args)
    plan = Plan(
        model=model_path,
        threads=tuple(load_threads(trajectories, limit)),
        policies=chosen_policies(policies),
        budgets=chosen_budgets(budgets),
        control=control,
        arguments=tuple(context.args),
        timeout_s=timeout,
    )
    replay = Replay(
        folder=out.resolve(),
        writer=PromptWriter(model_path),
        reader=answer_reader(agent, kind),
        protocol=protocol,
        tolerance=tolerance,
        max_tokens=max_tokens,
        at_a_time=at_a_time,
        pictures=pictures,
    )
    asked = {
        "recordings": str(trajectories),
        "agent": agent,
        "kind": kind.value,
        "tolerance": tolerance,
        "protocol": protocol.value,
        "max_tokens": max_tokens,
    }
    with console.status("starting") as status:

        def on_wait(seconds: float) -> None:
            status.update(f"the server starts ({seconds:.0f} s)")

        serve = partial(serving, timeout_s=start_timeout, on_wait=on_wait)
        advice = run(plan, replay, asked, max_loss, _stopping(serve, status.start, status.stop), console)
    show(advice, plan, console)
    console.print(f"Written to {out}: {PAGE} has the pictures", soft_wrap=True)


OWN_FLAGS = (
    "--kv-policy",
    "--kv-budget",
    "--kv-token-budget",
    "--kv-image-window",
    "--kv-policy-config",
    "--model-path",
)
"""What each server of a run gets from this command."""


def refuse_own_flags(arguments: Sequence[str]) -> None:
    """Words for the server must not say what is compared.

    Raises:
        TuneError: One does; or an API key would be written into the page.
    """
    given = [word.partition("=")[0] for word in arguments]
    wrong = sorted({word for word in given if word in OWN_FLAGS})
    if wrong:
        raise TuneError(f"{', '.join(wrong)}: every server of this command has its own; use --policies and --budgets")
    if "--api-key" in given:
        raise TuneError(
            "--api-key: the servers listen on this machine alone, and the page has their flags; leave it out"
        )


def run(plan: Plan, replay: Replay, asked: dict[str, Any], max_loss: float, serve: Serve, console: Console) -> Advice:
    """Replays what is missing, and writes the advice and the page.

    Args:
        plan, replay: what and how.
        asked: further settings that must be the same for a run to go on.
        max_loss: largest share of turns whose action may change.
        serve: runs a server.
        console: where the progress is drawn.
    """
    turns = {"threads": len(plan.threads), "turns": plan.num_turns, "fingerprint": fingerprint(plan)}
    settings = {"model": plan.model, **asked, **turns, "arguments": list(plan.arguments)}
    with open_folder(replay.folder, settings), Bars(console) as bars:
        conduct(plan, replay, serve, bars)
    cells = [cell for policy in plan.policies for cell in plan.cells(policy)]
    advice = advise(replay.folder, cells, max_loss, tasks_of(plan.threads))
    command = advice.flags(plan.model, plan.arguments)
    written = {**asdict(advice), "verdict": verdict(advice), "command": command}
    text = json.dumps(written, indent=1, ensure_ascii=False)
    (replay.folder / ADVICE_FILE).write_text(f"{text}\n", encoding="utf-8")
    left_out = len(plan.threads) - len(answered(replay.folder, plan.threads))
    cut_off = sum(row.cut_off for row in read_turns(turn_file(replay.folder, FULL), FullTurn))
    setup = [
        f"{plan.num_turns} recorded turns of {len(plan.threads)} threads, replayed with the full cache and with "
        f"{len(advice.outcomes)} policies and budgets; {replay.protocol.value}.",
        *([f"{left_out} threads are left out: the server refuses a turn of them."] if left_out else []),
        *([f"{cut_off} of the full cache's answers were cut off at {replay.max_tokens} tokens."] if cut_off else []),
    ]
    about = {"star-kv": __version__, **settings}
    changed = changed_turns(replay.folder, plan.threads, advice.outcomes)
    title = f"A policy and a budget for {'/'.join(Path(plan.model).parts[-2:])}"
    page = render(title, setup, command, advice, changed, about)
    (replay.folder / PAGE).write_text(page, encoding="utf-8")
    return advice


class Bars(Watcher):
    """Draws a run: a bar for each cell. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = noted_progress(console)
        self._tasks: dict[str, Any] = {}
        self._changed: dict[str, int] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def server(self, policy: str, log: Path) -> None:
        """A server starts; a status line turns meanwhile."""
        self._progress.stop()
        self._console.print(f"{policy}: a server starts; its log is {log}", soft_wrap=True, highlight=False)

    def cell(self, name: str, total: int, remaining: int) -> None:
        """A cell begins."""
        self._progress.start()
        self._changed[name] = 0
        self._tasks[name] = self._progress.add_task(name, total=total, completed=total - remaining, note="")

    def turn(self, name: str, same: bool) -> None:
        """A turn is done."""
        self._changed[name] += not same
        note = "" if name == FULL else f"{self._changed[name]} changed"
        self._progress.update(self._tasks[name], advance=1, note=note)

    def refused(self, thread: str, reason: str) -> None:
        """A thread is left out."""
        self._console.print(f"[yellow]left out:[/] {thread}: {escape(reason)}", soft_wrap=True, highlight=False)


def show(advice: Advice, plan: Plan, console: Console) -> None:
    """The advice, for the terminal."""
    turns = advice.outcomes[0].same.num_samples
    table = Table(title=f"{turns} turns against the full cache; nats for each token", title_justify="left")
    table.add_column("cell", no_wrap=True)
    for head in ("same action, %", "p", "KL", "log p", "held, %"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in [*([advice.control] if advice.control else []), *advice.outcomes]:
        # The page and the file have these intervals too; a terminal is narrow.
        means = (text.partition(" ")[0] for text in (nats(one.kl), nats(one.logprob), percent(one.held)))
        table.add_row(one.cell.name, percent(one.same), p_value(one.test), *means)
    console.print(table)
    ages = sorted({age for one in advice.outcomes for age in one.ages})
    by_age = Table("cell", title=f"same action, %, by {age_head(advice)}", title_justify="left")
    for age in ages:
        by_age.add_column(str(age), justify="right")
    for one in advice.outcomes:
        by_age.add_row(one.cell.name, *(f"{100 * one.ages[age].mean:.1f}" if age in one.ages else "" for age in ages))
    console.print(by_age)
    console.print(verdict(advice), soft_wrap=True, highlight=False)
    console.print(advice.flags(plan.model, plan.arguments), soft_wrap=True, highlight=False, style="bold")


def chosen_policies(words: str) -> tuple[str, ...]:
    """The policies of ``--policies``.

    Raises:
        TuneError: there is none, or one is unknown or refused.
    """
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip() and word.strip() != FULL))
    for name in names:
        if name in REFUSED:
            raise TuneError(f"--policies {name} is not offered: {REFUSED[name]}")
        if name not in policy_names():
            raise TuneError(f"--policies {name!r} is not known: choose {', '.join(policy_names())}")
    if not names:
        raise TuneError(f"--policies names none besides the full cache: choose {', '.join(policy_names())}")
    return names


def chosen_budgets(words: str) -> tuple[float, ...]:
    """The budgets of ``--budgets``, the largest first.

    Raises:
        TuneError: one is no share below 1.
    """
    try:
        shares = sorted({float(word) for word in words.split(",") if word.strip()}, reverse=True)
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise TuneError(
            f"--budgets {words!r} must be numbers between 0 and 1 with commas between them, for example 0.4,0.2; the "
            "full cache is replayed anyway"
        )
    return tuple(shares)


def fingerprint(plan: Plan) -> str:
    """The same for the same turns in the same order."""
    digest = hashlib.sha256()
    for thread in plan.threads:
        for turn in thread.turns:
            said = [[one.role, _told(one), one.other, one.ago] for one in turn.said]
            digest.update(json.dumps([thread.name, turn.scored, turn.tools, said], default=dict).encode())
    return digest.hexdigest()[:16]


def _told(said: Said) -> list[str] | None:
    """What a message shows: its words, and screenshots by their digests."""
    return None if said.parts is None else [part if isinstance(part, str) else part.sha256 for part in said.parts]


def _stopping(serve: Callable[..., AbstractContextManager[str]], start: Any, stop: Any) -> Serve:
    """A server whose status line turns while it starts, and not beside the progress bar."""

    @contextmanager
    def run_server(flags: Sequence[str], log: Path) -> Iterator[str]:
        start()
        with serve(flags, log) as url:
            stop()
            yield url

    return run_server
