"""Numbers, plots and the page of the pilots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.pilots.capture import SeenTurn
from star_kv_sglang.tools.eval.pilots.measures import Drift, chance_information, drift, entropy, spatial_information

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pilots:
    """What was measured.

    Attributes:
        information: mean mutual information, nats, [layer][group].
        chance: the same with the scores dealt out over the screen at random.
        top: how often each key head had the most information in its layer, as a share of all turns, [layer][group].
        ratios: information of a layer's strongest key head over its weakest's, from the means, [layer].
        moves: share of neighbouring layers whose strongest key heads differ, mean over the turns.
        entropies: mean normalised entropy of the scores, by turn.
        drifts: mean drift by lag.
        num_trajectories, num_turns: what the means rest on.
    """

    information: list[list[float]]
    chance: list[list[float]]
    top: list[list[float]]
    ratios: list[float]
    moves: float
    entropies: list[float]
    drifts: list[Drift]
    num_trajectories: int
    num_turns: int


def measure(trajectories: Sequence[Sequence[SeenTurn]]) -> Pilots:
    """Measures captured trajectories, one list of turns each.

    Raises:
        EvalError: there are none.
    """
    turns = [turn for trajectory in trajectories for turn in trajectory]
    if not turns:
        raise EvalError("there are no turns to measure; give a file with trajectories")
    information = torch.stack([spatial_information(turn) for turn in turns])
    mean = information.mean(dim=0)
    strongest = information.argmax(dim=-1)
    top = torch.nn.functional.one_hot(strongest, mean.shape[1]).double().mean(dim=0)
    weakest = mean.amin(dim=-1).clamp(min=1e-12)
    moves = (strongest[:, 1:] != strongest[:, :-1]).double().mean() if mean.shape[0] > 1 else torch.tensor(0.0)
    longest = max(len(trajectory) for trajectory in trajectories)
    by_turn = [[entropy(t[i]).mean() for t in trajectories if len(t) > i] for i in range(longest)]
    return Pilots(
        information=mean.tolist(),
        chance=torch.stack([chance_information(turn) for turn in turns]).mean(dim=0).tolist(),
        top=top.tolist(),
        ratios=(mean.amax(dim=-1) / weakest).tolist(),
        moves=float(moves),
        entropies=[float(torch.stack(values).mean()) for values in by_turn],
        drifts=[one for lag in range(1, longest) if (one := _mean_drift(trajectories, lag)) is not None],
        num_trajectories=len(trajectories),
        num_turns=len(turns),
    )


def _mean_drift(trajectories: Sequence[Sequence[SeenTurn]], lag: int) -> Drift | None:
    found = [one for trajectory in trajectories if (one := drift(trajectory, lag)) is not None]
    if not found:
        return None
    count = len(found)
    return Drift(
        lag,
        sum(one.values for one in found) / count,
        sum(one.place for one in found) / count,
        sum(one.rank for one in found) / count,
    )


def write_pilots(pilots: Pilots, what: dict[str, Any], page: Path, pictures: Path) -> list[Path]:
    """Writes the page, its numbers (``.json`` beside it) and its plots.

    Args:
        pilots: what was measured.
        what: model, questions and machine, for the page.
        page: the Markdown file.
        pictures: folder of the plots; below the page's folder.

    Raises:
        EvalError: matplotlib is not installed.
    """
    numbers = page.with_suffix(".json")
    pictures.mkdir(parents=True, exist_ok=True)
    numbers.write_text(json.dumps({**what, **asdict(pilots)}, indent=1) + "\n", encoding="utf-8")
    drawn = []
    for name, figure in _figures(pilots).items():
        path = pictures / f"pilots-{name}.svg"
        # The same numbers give the same file.
        figure.savefig(path, metadata={"Date": None})
        drawn.append(path)
    environment = Environment(
        loader=PackageLoader("star_kv_sglang.tools.eval.pilots"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("pilots.md.jinja").render(
        pilots=pilots,
        what=what,
        numbers=numbers.name,
        plots={path.stem: path.relative_to(page.parent).as_posix() for path in drawn},
    )
    page.write_text(text, encoding="utf-8")
    return [page, numbers, *drawn]


def _figures(pilots: Pilots) -> dict[str, Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EvalError("the plots need matplotlib: pip install matplotlib") from None
    above = (torch.tensor(pilots.information) - torch.tensor(pilots.chance)).tolist()
    maps = Figure(figsize=(8, 4), layout="constrained")
    for axis, (title, values, label) in zip(
        maps.subplots(1, 2),
        (
            ("information above chance", above, "nats"),
            ("most informed of its layer", pilots.top, "share of turns"),
        ),
        strict=True,
    ):
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=min(0.0, *(min(row) for row in values)))
        axis.set(title=title, xlabel="key head", ylabel="layer")
        axis.set_xticks(range(len(values[0])))
        maps.colorbar(image, ax=axis, label=label)
    lines = Figure(figsize=(10, 3.2), layout="constrained")
    entropies, places, ranks = lines.subplots(1, 3)
    entropies.plot(range(1, len(pilots.entropies) + 1), pilots.entropies, marker="o")
    entropies.set(title="entropy of the scores", xlabel="turn", ylim=(0, 1.02))
    lags = [one.lag for one in pilots.drifts]
    places.plot(lags, [one.values for one in pilots.drifts], marker="o", label="of the values")
    places.plot(lags, [one.place for one in pilots.drifts], marker="o", label="over the screen")
    places.set(title="Wasserstein distance", xlabel="screenshots between")
    places.set_ylim(bottom=0)
    places.legend(frameon=False)
    ranks.plot(lags, [one.rank for one in pilots.drifts], marker="o")
    ranks.set(title="rank correlation", xlabel="screenshots between", ylim=(-0.05, 1.02))
    for axis in (entropies, places, ranks):
        axis.grid(alpha=0.3)
    return {"information": maps, "drift": lines}
