"""Questions for ``star-kv eval suite``: trajectories whose last turn asks recalls only.

``python -m tinygui.suite_questions OUT/panels.json --count 400`` (from ``examples/``). Every turn but the last asks
one question about the screen in view, clicks and reads in turn. The last asks recalls of as many different ages as it
can, half of them of widgets that have moved or gone. Of these, every other one is of a widget that stands elsewhere
now, where there is such a one: the suite goes on to ask where.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from star_kv_sglang.tools.rollout.trajectory import Question, Trajectory, save_trajectories
from tinygui.language import LAST_STEP, LONGEST_RECALL, possible_questions
from tinygui.trajectories import build
from tinygui.world import Shown
from tinygui.worlds import PANELS, WORLDS, World

FIRST_SEED = 9_000_000
"""Seeds from here on are the suite's; nothing is trained on them."""


def suite_trajectory(seed: int, world: World = PANELS, *, num_turns: int = 6, recalls: int = 3) -> Trajectory:
    """The trajectory of a seed.

    Args:
        seed: any integer; also the trajectory's id.
        world: where the screens are from.
        num_turns: screens.
        recalls: of each kind in the last turn, fewer where the screens have no such widget.
    """
    rng = Random(f"tinygui suite {seed}")
    first_step = rng.randint(1, LAST_STEP - num_turns + 1)
    screens = world.screens(rng, num_turns)
    last = num_turns - 1
    asked: list[tuple[Question, ...]] = []
    for index in range(last):
        kind = "click" if (seed + index) % 2 == 0 else "read"
        asked.append((rng.choice(possible_questions(screens, index, first_step, kind)),))
    candidates = possible_questions(screens, last, first_step, "recall")
    rng.shuffle(candidates)
    longest = min(last, LONGEST_RECALL)
    ages = [(seed * recalls + number) % longest + 1 for number in range(recalls)]
    moved = _spread(rng, [q for q in candidates if q.moved], ages, screens[-1])
    still = _spread(rng, [q for q in candidates if not q.moved], ages, None)
    asked.append((*moved, *still))
    return build(seed, screens, asked, first_step, world)


def _spread(rng: Random, candidates: Sequence[Question], ages: Sequence[int], now: Shown | None) -> list[Question]:
    """One question of each age, where there is one; every other one of a widget that stands elsewhere ``now``."""
    chosen = []
    for age in ages:
        of_age = [question for question in candidates if question.back == age]
        elsewhere = [question for question in of_age if now is not None and _is_shown(question, now)]
        pool = elsewhere if elsewhere and rng.random() < 0.5 else of_age
        if pool:
            chosen.append(pool[0])
    return chosen


def _is_shown(question: Question, now: Shown) -> bool:
    return question.text.split()[1:3] in [[*widget.label] for widget in now.widgets]


def main() -> None:
    """Writes a trajectory file."""
    parser = argparse.ArgumentParser(description="Write the questions of star-kv eval suite.")
    parser.add_argument("out", type=Path, help="the .json file; screenshots go beside it")
    parser.add_argument("--world", choices=list(WORLDS), default=PANELS.name)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--count", type=int, default=400, help="trajectories, with seeds from --seed on")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.count)
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(suite_trajectory, seeds, [WORLDS[args.world]] * args.count, chunksize=8))
    save_trajectories(made, args.out)
    print(f"{args.count} trajectories written to {args.out}")


if __name__ == "__main__":
    main()
