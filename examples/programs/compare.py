"""What has moved between two screenshots: a fork for each question, and a choice among the places that there are.

python -m programs.compare http://127.0.0.1:30000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import sglang as sgl

from star_kv_sglang.frontend import Endpoint
from star_kv_sglang.tools.rollout.trajectory import Turn
from tinygui.language import centre_words
from tinygui.trajectories import generate


@sgl.function
def compare(s: Any, before: Turn, after: Turn, widget: str, places: Sequence[str]) -> None:
    """Say where ``widget`` was and where it is, each one of ``places``; the first is asked for again at the end."""
    places = list(places)
    s += sgl.user(f"{before.step} " + sgl.image(before.image_png) + f" click {widget} here")
    s += sgl.assistant(sgl.select("was", choices=places))
    s += sgl.user_begin() + f"{after.step} " + sgl.image(after.image_png)
    asked = {"is": f" click {widget} here", "recalled": f" recall {widget} {before.step}"}
    forks = s.fork(len(asked))
    for fork, (name, question) in zip(forks, asked.items(), strict=True):
        fork += question + sgl.user_end()
        fork += sgl.assistant(sgl.select(name, choices=places))
    for fork, name in zip(forks, asked, strict=True):
        s[name] = fork[name]
    s["moved"] = s["was"] != s["is"]


def main() -> None:
    """Two screens of the small world, and every widget that is on both."""
    before, after = generate(94_000, num_turns=2, questions_per_turn=1).turns
    endpoint = Endpoint(sys.argv[1])
    places = sorted({centre_words(widget.box) for turn in (before, after) for widget in turn.widgets})
    labels = [{(one.colour, one.letter) for one in turn.widgets} for turn in (before, after)]
    for colour, letter in sorted(labels[0] & labels[1]):
        state = compare.run(before, after, f"{colour} {letter}", places, backend=endpoint)
        print(f"{colour} {letter}: {state['was']} -> {state['is']}{'  moved' if state['moved'] else ''}")


if __name__ == "__main__":
    main()
