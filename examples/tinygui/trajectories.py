"""Trajectories of the small world: seeds in, screens and questions with ground truth out.

``python -m tinygui.trajectories OUT/trajectories.json --count 40`` (from ``examples/``) writes a file that
``star-kv rollout`` reads; ``--branches 8`` writes branches of one task instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

from star_kv_sglang.tools.rollout.trajectory import LabelledBox, Question, Trajectory, Turn, save_trajectories
from tinygui.language import DEFAULT_MIX, LAST_STEP, QuestionMix, ask, step_name
from tinygui.world import Shown
from tinygui.worlds import PANELS, WORLDS, World


def generate(
    seed: int,
    *,
    num_turns: int = 6,
    questions_per_turn: int = 2,
    world: World = PANELS,
    mix: QuestionMix = DEFAULT_MIX,
) -> Trajectory:
    """The trajectory of a seed.

    Args:
        seed: any integer; also the trajectory's id.
        num_turns: screens, at most 12 (the vocabulary has no later step); the shipped model was trained on up to 6.

    Raises:
        ValueError: ``num_turns`` or ``questions_per_turn`` is out of range.
    """
    _check(num_turns, questions_per_turn)
    rng = Random(f"tinygui trajectory {seed}")
    first_step = rng.randint(1, LAST_STEP - num_turns + 1)
    screens = world.screens(rng, num_turns)
    asked = [ask(rng, screens, index, first_step, questions_per_turn, mix) for index in range(num_turns)]
    return build(seed, screens, asked, first_step, world)


def branching(
    seed: int,
    *,
    num_branches: int = 8,
    num_turns: int = 6,
    questions_per_turn: int = 2,
    world: World = PANELS,
    mix: QuestionMix = DEFAULT_MIX,
) -> list[Trajectory]:
    """Branches of one task: all share the first turn, screen and questions, and go their own ways from the second.

    Raises:
        ValueError: a count is out of range.
    """
    _check(num_turns, questions_per_turn)
    if num_branches < 1:
        raise ValueError(f"num_branches must be at least 1, not {num_branches}")
    rng = Random(f"tinygui branches {seed}")
    root = world.first_screen(rng)
    shared = ask(rng, [root], 0, 1, questions_per_turn, mix)
    return [_branch(seed, number, root, shared, num_turns, world, mix) for number in range(num_branches)]


def _branch(
    seed: int,
    number: int,
    root: Shown,
    shared: tuple[Question, ...],
    num_turns: int,
    world: World,
    mix: QuestionMix,
) -> Trajectory:
    rng = Random(f"tinygui branches {seed} branch {number}")
    screens = [root]
    asked = [shared]
    for index in range(1, num_turns):
        screens.append(world.next_screen(rng, screens[-1]))
        asked.append(ask(rng, screens, index, 1, len(shared), mix))
    return build(number, screens, asked, 1, world)


def build(
    trajectory_id: int,
    screens: Sequence[Shown],
    asked: Sequence[tuple[Question, ...]],
    first_step: int,
    world: World = PANELS,
) -> Trajectory:
    """Draws the screens and puts a trajectory together."""
    turns = tuple(
        Turn(
            step=step_name(first_step, index),
            image_png=world.png(screen),
            questions=questions,
            widgets=tuple(LabelledBox(widget.box, widget.colour, widget.letter) for widget in screen.widgets),
        )
        for index, (screen, questions) in enumerate(zip(screens, asked, strict=True))
    )
    return Trajectory(trajectory_id, turns)


def _check(num_turns: int, questions_per_turn: int) -> None:
    if not 1 <= num_turns <= LAST_STEP:
        raise ValueError(f"num_turns must be from 1 to {LAST_STEP} (there is no later step), not {num_turns}")
    if not 1 <= questions_per_turn <= 8:
        raise ValueError(f"questions_per_turn must be from 1 to 8, not {questions_per_turn}")


def main() -> None:
    """Writes a trajectory file."""
    parser = argparse.ArgumentParser(description="Write trajectories of the small GUI world.")
    parser.add_argument("out", type=Path, help="the .json file; screenshots go beside it")
    parser.add_argument("--world", choices=list(WORLDS), default=PANELS.name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40, help="trajectories, with seeds from --seed on")
    parser.add_argument("--branches", type=int, help="write this many branches of one task instead")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--questions", type=int, default=2, help="questions a turn")
    args = parser.parse_args()
    world = WORLDS[args.world]
    lengths = {"num_turns": args.turns, "questions_per_turn": args.questions}
    if args.branches is not None:
        made = branching(args.seed, num_branches=args.branches, world=world, **lengths)
    else:
        made = [generate(seed, world=world, **lengths) for seed in range(args.seed, args.seed + args.count)]
    save_trajectories(made, args.out)
    print(f"{len(made)} trajectories written to {args.out}")


if __name__ == "__main__":
    main()
