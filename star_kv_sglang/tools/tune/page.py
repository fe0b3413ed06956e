"""One self-contained HTML page: the advice, all cells, and pictures of what was kept where answers changed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from star_kv_sglang.tools.eval.statistics import Estimate, PairedTest, p_text
from star_kv_sglang.tools.report.kept import LEGEND, draw_kept
from star_kv_sglang.tools.report.page import Picture, base_style, environment
from star_kv_sglang.tools.tune.advice import FEW, Advice, Outcome
from star_kv_sglang.tools.tune.recordings import Thread
from star_kv_sglang.tools.tune.records import FULL, KEPT, CellTurn, FullTurn, read_turns, turn_file

_WIDEST: Final = 1280
_SMALL: Final = 640

GLOSSARY: Final = {
    "turn": "One recorded prompt. It is sent as it was recorded, whatever the policy has answered before.",
    "same": "Turns in which the policy's own answer does what the full cache's does: the same action, clicks within "
    "the tolerance.",
    "p": "How likely so many changes would be if the policy changed no more than the full cache does when it is asked "
    "again, or nothing where that was not replayed; paired, over whole threads.",
    "KL": "How far the policy's next token is from the full cache's, mean over the full cache's answer, in nats; from "
    "below, as only the likeliest tokens are looked at one by one.",
    "log-probability": "Of the full cache's answer under the policy, less that under the full cache, mean over its "
    "tokens, in nats.",
    "held": "Share of the prompts' tokens whose KV is left.",
    "full-again": "The full cache once more: what changes by itself.",
}


@dataclass(frozen=True)
class Changed:
    """A turn whose action changed in a cell.

    Attributes:
        cell, thread, turn: which; turns from 1.
        question: the text of its last message.
        full, policy: the two answers.
        pictures: of what was kept.
    """

    cell: str
    thread: str
    turn: int
    question: str
    full: str
    policy: str
    pictures: tuple[Picture, ...]


def changed_turns(folder: Path, threads: Sequence[Thread], outcomes: Sequence[Outcome]) -> list[Changed]:
    """The turns whose kept tokens were kept, cell by cell."""
    answers = {(row.thread, row.turn): row.text for row in read_turns(turn_file(folder, FULL), FullTurn)}
    found = []
    for outcome in outcomes:
        cell = outcome.cell.name
        rows = {(row.thread, row.turn): row for row in read_turns(turn_file(folder, cell), CellTurn)}
        for file in sorted((folder / KEPT / cell).glob("*.npz")):
            thread, index = threads[int(file.stem.partition("-")[0])], int(file.stem.partition("-")[2])
            with np.load(file) as kept:
                shares = {int(name): np.asarray(kept[name], dtype=np.float64) for name in kept.files}
            turn, row = thread.turns[index], rows[thread.name, index]
            newest = len(turn.pictures) - 1
            pictures = tuple(
                _picture(turn.pictures[place].read(), share, _title(newest - place, turn.ago))
                for place, share in sorted(shares.items())
            )
            said = (_short(turn.question), _short(answers[thread.name, index]), _short(row.text))
            found.append(Changed(cell, thread.name, index + 1, *said, pictures))
    return found


def render(
    title: str, setup: Sequence[str], command: str, advice: Advice, changed: Sequence[Changed], about: Mapping[str, Any]
) -> str:
    """The page's HTML; it refers to nothing outside itself.

    Args:
        title: its heading.
        setup: lines that say what was replayed.
        command: what to serve with.
        advice: what follows.
        changed: turns with pictures.
        about: what was run, by name.
    """
    templates = environment("star_kv_sglang.tools.tune")
    templates.filters.update(percent=percent, nats=nats, p=p_value)
    ages = sorted({age for one in advice.outcomes for age in one.ages})
    return templates.get_template("tune.html.j2").render(
        title=title, setup=setup, command=command, advice=advice, changed=changed, about=about, ages=ages, few=FEW,
        glossary=GLOSSARY, legend=LEGEND, verdict=verdict(advice), age_head=age_head(advice), style=base_style(),
    )  # fmt: skip


def verdict(advice: Advice) -> str:
    """The advice in words."""
    bound = f"{100 * advice.max_loss:g}%"
    if advice.chosen is None:
        beyond = [one for one in advice.outcomes if one.loss > advice.max_loss]
        nearest = min(beyond, key=lambda one: one.loss)
        return (
            f"No budget changes at most {bound} of the actions with all larger ones of its policy: {nearest.cell.name} "
            f"changes {100 * nearest.loss:.1f}%.{by_itself(advice)} Keep the full cache, try larger budgets, or raise "
            "--max-loss."
        )
    one = advice.chosen
    low, high = max(0.0, 1 - one.same.high), one.most_loss
    said = (
        f"{one.cell.policy} at {100 * one.cell.budget:g}% changes {100 * one.loss:.1f}% of the actions (95% interval "
        f"{100 * low:.1f} to {100 * high:.1f}) and holds {100 * one.held.mean:.0f}% of the prompts' tokens. It is the "
        f"smallest budget that changes at most {bound}, as all larger ones of its policy do.{by_itself(advice)}"
    )
    if not advice.is_sure:
        said += f" The interval reaches beyond {bound}: record more turns to be sure."
    elif one.same.num_samples < FEW:
        said += f" It rests on {one.same.num_samples} turns; with fewer than {FEW} an interval says little."
    return said


def by_itself(advice: Advice) -> str:
    """What the full cache changes where it is asked twice."""
    return "" if advice.control is None else f" The full cache changes {100 * advice.control.loss:.1f}% by itself."


def age_head(advice: Advice) -> str:
    """What ages are."""
    return "screenshots ago" if advice.knows_ages else "earlier screenshots in the prompt"


def percent(estimate: Estimate | None) -> str:
    """``97.5 (95.0 to 99.2)``; empty for none."""
    if estimate is None:
        return ""
    return f"{100 * estimate.mean:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def nats(estimate: Estimate | None) -> str:
    """``0.012 (0.008 to 0.017)``; empty for none."""
    if estimate is None:
        return ""
    # Nothing is less than nothing.
    return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})".replace("-0.000", "0.000")


def p_value(test: PairedTest | None) -> str:
    """A p-value; empty for none."""
    return "" if test is None else p_text(test.p_value)


def _title(ago: int, needed: int | None) -> str:
    name = "The newest screenshot" if ago == 0 else f"{ago} screenshot{'s' if ago > 1 else ''} ago"
    return f"{name}, which the answer needs" if needed == ago else name


def _picture(content: bytes, share: np.ndarray[Any, np.dtype[np.float64]], title: str) -> Picture:
    with Image.open(io.BytesIO(content)) as image:
        shown = image.convert("RGB")
    if shown.width > _WIDEST:
        shown = shown.resize((_WIDEST, max(1, round(shown.height * _WIDEST / shown.width))))
    drawn = draw_kept(shown, share, scale=2 if shown.width <= _SMALL else 1)
    return Picture(drawn, title, f"{100 * share.mean():.0f}% of its tokens are left in each layer.", shown)


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
