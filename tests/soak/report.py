"""What a soak writes down, and what it takes for right."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.soak.agents import Branch, Mood

MAX_GROWTH = 0.03
"""Growth of the scheduler's memory from the second to the last quarter of the run that counts as noise, beside
20 MiB."""
NOISE_BYTES = 20 * 2**20


@dataclass
class Report:
    """What came out.

    Attributes:
        minutes: Of load.
        num_agents: At the same time.
        branches: Branches that were played, by mood.
        num_answers: Answers in them.
        num_correct: Correct ones.
        num_retractions: Requests that were put back.
        num_branches_comparable: Branches with an answer that nobody can have had a part in.
        num_compared: Answers that were compared with those of the serial replay.
        num_branches_compared: Branches that they belong to.
        num_late_compared: Answers among them that read history: a screenshot of an earlier turn.
        num_evicted: Answers before which history had been evicted.
        num_pruned_otherwise: Answers whose prompts were pruned to another number of tokens.
        different: Those that differ: seed, number, both texts.
        load_s: Seconds of load, until the last answer.
        replay_s: Seconds of the replay.
        replay_is_complete: It had the time that it took.
        lost_slots: Slots in use that belong to nobody, at the end of the load.
        lost_slots_after_replay: The same at the end.
        rss: Seconds since the start, bytes of the scheduler process, and answers so far.
        stats: The policy's report after the load.
        problems: Why the run failed.
    """

    minutes: float
    num_agents: int
    branches: dict[str, int] = field(default_factory=lambda: {mood.value: 0 for mood in Mood})
    num_answers: int = 0
    num_correct: int = 0
    num_retractions: int = 0
    num_branches_comparable: int = 0
    num_compared: int = 0
    num_branches_compared: int = 0
    num_late_compared: int = 0
    num_evicted: int = 0
    num_pruned_otherwise: int = 0
    different: list[tuple[int, int, str, str]] = field(default_factory=list)
    load_s: float = 0.0
    replay_s: float = 0.0
    replay_is_complete: bool = False
    lost_slots: int = 0
    lost_slots_after_replay: int = 0
    rss: list[tuple[float, int, int]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, branch: Branch) -> None:
        """A branch has ended."""
        self.branches[branch.mood.value] += 1
        self.num_answers += len(branch.replies)
        self.num_correct += branch.num_correct
        self.num_retractions += sum(reply.num_retractions for reply in branch.replies)
        self.num_branches_comparable += bool(branch.undisturbed)

    def growth(self) -> tuple[float, float]:
        """Median memory of the second and of the last quarter of the run, in bytes."""
        sizes = [size for _, size, _ in self.rss]
        quarter = max(1, len(sizes) // 4)
        return statistics.median(sizes[quarter : 2 * quarter] or sizes), statistics.median(sizes[-quarter:])

    def memory(self) -> dict[str, int]:
        """Memory in MiB when the load began, in the middle, at its end, and at most."""
        sizes = [size // 2**20 for _, size, _ in self.rss]
        return {"start": sizes[0], "middle": sizes[len(sizes) // 2], "end": sizes[-1], "most": max(sizes)}

    def judge(self) -> None:
        """Write down why the run failed, if it did."""
        before, after = self.growth()
        wrong = {
            f"the scheduler's memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB": (
                after > before * (1 + MAX_GROWTH) + NOISE_BYTES
            ),
            f"{self.lost_slots} slots belong to nobody after the load": self.lost_slots,
            f"{self.lost_slots_after_replay} slots belong to nobody after the replay": self.lost_slots_after_replay,
            f"{len(self.different)} of {self.num_compared} answers differ from the replay's": self.different,
            "no answer could be compared; give the pool more tokens": not self.num_compared,
            f"the replay broke off after {self.replay_s:.0f} s": not self.replay_is_complete,
            "no request was put back; give the pool fewer tokens": not self.num_retractions,
            f"the pruner failed {self.stats['num_pruner_faults']} times; see the server's log": (
                self.stats["num_pruner_faults"]
            ),
            **{
                f"no branch in the mood {mood!r} has ended; run longer": not count
                for mood, count in self.branches.items()
            },
        }
        self.problems += [problem for problem, is_so in wrong.items() if is_so]
