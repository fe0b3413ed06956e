"""Recorded threads as `star-kv eval pilots` watches them: a turn for each new screenshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from star_kv_sglang.tools.eval.pilots.capture import PilotPrompt
from star_kv_sglang.tools.tune.errors import RecordingError
from star_kv_sglang.tools.tune.prompts import template_messages
from star_kv_sglang.tools.tune.recordings import Thread
from star_kv_sglang.tools.tune.records import FULL, FullTurn, read_turns, turn_file


def watched_prompts(threads: Sequence[Thread], tuned: Path | None) -> list[list[PilotPrompt]]:
    """The turns of each thread whose newest screenshot is a new one, with all that was said before them.

    Args:
        threads: what was recorded.
        tuned: folder of a run of `star-kv tune` with the same threads, whose answers stand where none were recorded.

    Raises:
        RecordingError: answers are missing.
    """
    rows = [] if tuned is None else read_turns(turn_file(tuned, FULL), FullTurn)
    answers = {(row.thread, row.turn): row.text for row in rows}
    found = []
    for thread in threads:
        said: dict[int, str] = {}
        prompts: list[PilotPrompt] = []
        before = ""
        for index, turn in enumerate(thread.turns):
            if any(one.parts is None and number not in said for number, one in enumerate(turn.said)):
                raise RecordingError(
                    f"{thread.name}: nobody has recorded the answers of its first {index} turns; run star-kv tune on "
                    "the same recordings, and give its folder with --answers"
                )
            newest = turn.pictures[-1].sha256 if turn.pictures else before
            if newest != before:
                shown = [picture.read() for picture in turn.pictures]
                prompts.append(PilotPrompt(template_messages(turn, said), shown, turn.tools))
            before = newest
            if (thread.name, index) in answers:
                said[len(turn.said)] = answers[thread.name, index]
        found.append(prompts)
    return found
