"""What a soak writes down, and what it takes for right."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.soak.agents import Branch, Mood
from tests.soak.processes import NAMES, Held

MAX_GROWTH = 0.03
"""Growth of a process's memory from the second to the last quarter of the run that counts as noise, beside 20 MiB."""
NOISE_BYTES = 20 * 2**20
NOISE_FILES = 64
"""Descriptors beside that: connections, and the screenshots of requests that run."""


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
        held: For each process of the server what it held, in order of time.
        seconds: Since the start, at each of these moments.
        image_cache: What the image cache said of itself when nothing ran any more.
        num_shared_bytes: Of screenshots' features at that moment.
        most_shared_bytes: That the cache may hold.
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
    held: dict[str, list[Held]] = field(default_factory=lambda: {name: [] for name in NAMES})
    seconds: list[float] = field(default_factory=list)
    image_cache: dict[str, float] = field(default_factory=dict)
    num_shared_bytes: int = 0
    most_shared_bytes: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, branch: Branch) -> None:
        """A branch has ended."""
        self.branches[branch.mood.value] += 1
        self.num_answers += len(branch.replies)
        self.num_correct += branch.num_correct
        self.num_retractions += sum(reply.num_retractions for reply in branch.replies)
        self.num_branches_comparable += bool(branch.undisturbed)

    def medians(self, process: str, what: str) -> list[float]:
        """The median of each quarter of the run.

        Args:
            process: Its name.
            what: A field of :class:`Held`.
        """
        series = [getattr(held, what) for held in self.held[process]]
        quarter = max(1, len(series) // 4)
        return [statistics.median(series[n * quarter : (n + 1) * quarter] or series) for n in range(4)]

    def growing(self) -> list[str]:
        """What a process holds more of in the last quarter of the run than in the second."""
        noise = {"num_bytes": NOISE_BYTES, "num_files": NOISE_FILES, "num_shared_bytes": NOISE_BYTES}
        quarters = {(name, what): self.medians(name, what) for name in self.held for what in noise}
        return [
            f"{what} of {name} grew: {[round(one) for one in quarter]}, the median of each quarter"
            for (name, what), quarter in quarters.items()
            if quarter[3] > quarter[1] * (1 + MAX_GROWTH) + noise[what]
        ]

    def judge(self) -> None:
        """Write down why the run failed, if it did."""
        wrong = {
            f"{self.num_shared_bytes} bytes of screenshots are held when nothing runs; the cache has room for "
            f"{self.most_shared_bytes}": self.num_shared_bytes > self.most_shared_bytes,
            "the image cache has evicted nothing; give it less": not self.image_cache.get("cache_evictions_total"),
            "no screenshot went by reference": not self.image_cache.get("references_hits_total"),
            "there was no shared memory for some screenshots": self.image_cache.get("features_not_moved_total"),
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
        self.problems += [*self.growing(), *(problem for problem, is_so in wrong.items() if is_so)]
