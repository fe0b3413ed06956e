"""Best of N clicks: samples of one prompt, and a judge that looks at what stands under each.

python -m programs.best_of_n http://127.0.0.1:30000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import sglang as sgl

from star_kv_sglang.frontend import Endpoint
from tinygui.trajectories import generate


@sgl.function
def best_click(s: Any, step: str, screen: bytes, widget: str, num_samples: int) -> None:
    """Sample clicks on ``widget``, let a judge read what is there, and take the most frequent one that is right."""
    s += sgl.user_begin() + f"{step} " + sgl.image(screen)
    # Both the proposer and the judges go on from the screenshot.
    (proposer,) = s.fork(1)
    proposer += f" click {widget} here" + sgl.user_end()
    proposer += sgl.assistant(sgl.gen("clicks", n=num_samples, max_tokens=8, temperature=0.7))
    clicks = [click.strip() for click in proposer["clicks"]]
    places = sorted(set(clicks), key=lambda place: -clicks.count(place))
    judges = s.fork(len(places))
    for judge, place in zip(judges, places, strict=True):
        judge += f" read {place} here" + sgl.user_end()
        judge += sgl.assistant(sgl.gen("seen", max_tokens=8, temperature=0))
    seen = {place: judge["seen"].strip() for judge, place in zip(judges, places, strict=True)}
    s["click"] = choose(places, seen, widget)
    s["metas"] = proposer.get_meta_info("clicks")
    s["judged"] = [judge.get_meta_info("seen") for judge in judges]


def choose(places: Sequence[str], seen: dict[str, str], widget: str) -> str:
    """The most frequent click under which the judge sees the widget; the most frequent one where there is none."""
    return next((place for place in places if seen[place] == widget), places[0])


def main() -> None:
    """One screen of the small world."""
    turn = generate(94_000, num_turns=1, questions_per_turn=1).turns[0]
    widget = turn.widgets[0]
    label = f"{widget.colour} {widget.letter}"
    state = best_click.run(turn.step, turn.image_png, label, num_samples=8, backend=Endpoint(sys.argv[1]))
    print(f"{label}: click {state['click']}; its box is {widget.box}")


if __name__ == "__main__":
    main()
