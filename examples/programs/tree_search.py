"""Tree search over turns: fork at every turn, keep the best branches.

python -m programs.tree_search http://127.0.0.1:30000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sglang as sgl

from star_kv_sglang.frontend import Endpoint
from star_kv_sglang.tools.rollout.trajectory import Turn
from tinygui.trajectories import generate


@dataclass(frozen=True)
class Branch:
    """A conversation so far.

    Attributes:
        state: SGLang's state of it.
        answers: One for each turn.
        score: Sum of the log-probabilities of all answers' tokens.
        metas: The ``meta_info`` of each answer.
    """

    state: Any
    answers: tuple[str, ...] = ()
    score: float = 0.0
    metas: tuple[dict[str, Any], ...] = ()

    def grow(self, turn: Turn, width: int) -> list[Branch]:
        """Forks behind the next screenshot, each with an answer of its own; they are sent together."""
        state = self.state
        state += sgl.user(f"{turn.step} " + sgl.image(turn.image_png) + f" {turn.questions[0].text}")
        forks = state.fork(width)
        forks += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=1.0, return_logprob=True))
        return [self._with(fork) for fork in forks.states]

    def _with(self, fork: Any) -> Branch:
        answer, meta = fork["answer"].strip(), fork.get_meta_info("answer")
        score = self.score + sum(entry[0] for entry in meta["output_token_logprobs"])
        return Branch(fork, (*self.answers, answer), score, (*self.metas, meta))


@sgl.function
def search(s: Any, turns: Sequence[Turn], width: int, keep: int) -> None:
    """Take ``width`` answers in each branch at each turn, and go on with the ``keep`` best of all."""
    branches = [Branch(s)]
    for turn in turns:
        grown = [one for branch in branches for one in branch.grow(turn, width)]
        branches = sorted(grown, key=lambda branch: -branch.score)[:keep]
    s["answers"] = [branch.answers for branch in branches]
    s["scores"] = [branch.score for branch in branches]
    s["metas"] = [branch.metas for branch in branches]


def main() -> None:
    """Three screens of the small world."""
    turns = generate(94_000, num_turns=3, questions_per_turn=1).turns
    state = search.run(turns, width=3, keep=2, backend=Endpoint(sys.argv[1]))
    for answers, score in zip(state["answers"], state["scores"], strict=True):
        print(f"{score:8.3f}  {' | '.join(answers)}")


if __name__ == "__main__":
    main()
