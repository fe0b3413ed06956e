"""Replays threads in one cell: a policy and a budget, on a server that runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.report.trace import last_traces
from star_kv_sglang.tools.tune.actions import ReadAnswer, is_same, read
from star_kv_sglang.tools.tune.asking import Asker, Heard, Prompt, RefusedError
from star_kv_sglang.tools.tune.errors import ReplayError
from star_kv_sglang.tools.tune.measures import distance, teacher_forced
from star_kv_sglang.tools.tune.prompts import PromptWriter
from star_kv_sglang.tools.tune.recordings import Thread, Turn
from star_kv_sglang.tools.tune.records import AGAIN, FULL, KEPT, CellTurn, FullTurn, TurnFile, turn_file

_PAGES: Final = 64
"""Most tokens that a cache may find fewer of than it holds: those of a page that is not full."""

_SHOWN: Final = 2
"""Screenshots of a turn whose kept tokens are drawn."""


@dataclass(frozen=True)
class Cell:
    """A row of the table.

    Attributes:
        policy: as ``--kv-policy``.
        budget: share of the private visual tokens that stays.
        name: for files and tables.
    """

    policy: str
    budget: float
    name: str

    @classmethod
    def of(cls, policy: str, budget: float) -> Cell:
        """The cell of a policy and a budget."""
        return cls(policy, budget, f"{policy}-{100 * budget:g}")

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned."""
        return self.name not in (FULL, AGAIN)


@dataclass(frozen=True)
class Replay:
    """How turns are replayed.

    Attributes:
        folder: of the run.
        writer: writes prompts.
        reader: reads answers.
        protocol: what becomes of the cache between the turns of a thread.
        tolerance: between two points that count as the same.
        max_tokens: of an answer.
        at_a_time: threads in play.
        pictures: turns of each cell whose kept tokens are kept for the page.
        on_turn: told after each turn whether it is the same.
        on_refused: told which thread the server refuses under the full cache, and why; it is left out.
    """

    folder: Path
    writer: PromptWriter
    reader: ReadAnswer
    protocol: Protocol
    tolerance: float
    max_tokens: int
    at_a_time: int
    pictures: int
    on_turn: Callable[[bool], None] = lambda same: None
    on_refused: Callable[[str, str], None] = lambda thread, reason: None

    async def full(self, asker: Asker, threads: Sequence[Thread]) -> None:
        """The full cache's answers, which all cells are compared with.

        Raises:
            ReplayError: the server is gone.
        """
        file = TurnFile(turn_file(self.folder, FULL), FullTurn)

        async def play(number: int, thread: Thread) -> None:
            try:
                await answer(thread)
            except RefusedError as error:
                self.on_refused(thread.name, str(error))

        async def answer(thread: Thread) -> None:
            passage = _Passage(self, asker, Cell(FULL, 1.0, FULL), thread)
            answers: dict[int, str] = {}
            for index, turn in enumerate(thread.turns):
                heard = await passage.hear(index, turn, answers)
                known: FullTurn | None = file.rows.get((thread.name, index))
                # A run that goes on keeps the answer that it has, also where the server says another one now.
                answers[len(turn.said)] = heard.text if known is None else known.text
                if known is None:
                    tokens = [[one.id, one.logprob, dict(one.top)] for one in heard.tokens]
                    file.add(FullTurn(thread.name, index, heard.text, tokens, heard.prompt, heard.cut_off))
                    self.on_turn(True)

        await self._play_all(threads, file, play)

    async def cell(self, asker: Asker, cell: Cell, threads: Sequence[Thread], traces: Path) -> None:
        """A cell's turns.

        Args:
            asker: of a server of the cell's policy.
            cell: which.
            threads: all of them; those that the full cache has not answered are passed over.
            traces: where the server writes what it prunes.

        Raises:
            ReplayError: the server is gone, refuses a turn, or has lost what a turn goes on from.
        """
        file = TurnFile(turn_file(self.folder, cell.name), CellTurn)
        full = TurnFile(turn_file(self.folder, FULL), FullTurn).rows

        async def play(number: int, thread: Thread) -> None:
            if any((thread.name, index) not in full for index in range(len(thread.turns))):
                return
            passage = _Passage(self, asker, cell, thread)
            answers: dict[int, str] = {}
            for index, turn in enumerate(thread.turns):
                reference: FullTurn = full[thread.name, index]
                row = await passage.compare(index, turn, answers, reference)
                answers[len(turn.said)] = reference.text
                if (thread.name, index) in file.rows:
                    continue
                if not row.same and row.scored and cell.prunes:
                    passage.keep(traces, number, index)
                file.add(row)
                self.on_turn(row.same)
            passage.forget(traces)

        await self._play_all(threads, file, play)
        await asker.flush()

    async def _play_all(self, threads: Sequence[Thread], file: TurnFile, play: Callable[[int, Thread], Any]) -> None:
        """Play all threads that lack a turn, from their beginning: what a server holds of them cannot be stored."""
        left = iter([(n, one) for n, one in enumerate(threads) if file.lacks(one.name, len(one.turns))])

        async def some() -> None:
            for number, thread in left:
                await play(number, thread)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.at_a_time):
                    group.create_task(some())
        except ExceptionGroup as failures:
            # One reason is enough: all that lose the same server say the same.
            raise failures.exceptions[0] from failures


class _Passage:
    """One thread on its way through a cell."""

    def __init__(self, replay: Replay, asker: Asker, cell: Cell, thread: Thread) -> None:
        self._replay, self._asker, self._cell, self._thread = replay, asker, cell, thread
        self._nonce = uuid.uuid4().hex[:16]
        self._names: list[str] = []
        self._before: tuple[tuple[int, ...], tuple[str, ...], int] | None = None

    async def hear(self, index: int, turn: Turn, answers: dict[int, str], about: Sequence[int] = ()) -> Heard:
        """The answer to a turn."""
        heard, _ = await self._ask(index, turn, answers, about)
        return heard

    async def compare(self, index: int, turn: Turn, answers: dict[int, str], reference: FullTurn) -> CellTurn:
        """The answer to a turn, and what the policy thinks of the full cache's."""
        answer = reference.heard
        ids = tuple(token.id for token in answer)
        heard, prompt = await self._ask(index, turn, answers, ids[:1])
        forced = teacher_forced(ids, heard.tokens, heard.asked.get(ids[0]) if ids else None, None) if ids else None
        if ids and forced is None and heard.tokens:
            said = await self._asker.hear_said(prompt, ids, heard.prompt)
            forced = teacher_forced(ids, heard.tokens, heard.asked.get(ids[0]), said)
        apart = None if forced is None else distance(answer, forced)
        size = turn.pictures[-1].size if turn.pictures else (1, 1)
        mine, theirs = (read(self._replay.reader, text, size) for text in (heard.text, reference.text))
        same_words = heard.text.split() == reference.text.split()
        return CellTurn(
            thread=self._thread.name,
            turn=index,
            scored=turn.scored,
            screenshots=len(turn.pictures),
            ago=turn.ago,
            text=heard.text,
            same=same_words or is_same(theirs, mine, self._replay.tolerance),
            same_words=same_words,
            kl=None if apart is None else apart.kl,
            logprob=None if apart is None else apart.logprob,
            held=heard.live,
            prompt=heard.prompt,
        )

    async def _ask(self, index: int, turn: Turn, answers: dict[int, str], about: Sequence[int]) -> tuple[Heard, Prompt]:
        stateless = self._replay.protocol is Protocol.STATELESS
        name = f"{self._nonce}-{index}"
        prompt = Prompt(
            ids=self._replay.writer.ids(turn, answers),
            images=tuple([await asyncio.to_thread(picture.data_url) for picture in turn.pictures]),
            name=name,
            salt=name if stateless else self._nonce,
            budget=self._cell.budget,
            traced=self._cell.prunes,
        )
        try:
            heard = await self._asker.hear(prompt, self._replay.max_tokens, about)
        except ReplayError as error:
            raise type(error)(f"{self._cell.name}: {self._thread.name}, turn {index + 1}: {error}") from error
        self._names.append(name)
        if not stateless:
            self._refuse_loss(index, prompt, heard)
        return heard, prompt

    def _refuse_loss(self, index: int, prompt: Prompt, heard: Heard) -> None:
        before, self._before = self._before, (prompt.ids, prompt.images, heard.prompt)
        if before is None:
            return
        ids, images, known = before
        goes_on = prompt.ids[: len(ids)] == ids and prompt.images[: len(images)] == images
        if goes_on and heard.cached < known - _PAGES:
            raise ReplayError(
                f"{self._cell.name}: {self._thread.name}, turn {index + 1} found {heard.cached} tokens of its history "
                f"in the cache, not {known}: others have pushed it out. Give --at-a-time a smaller number, or the "
                "server more memory (--mem-fraction-static)"
            )

    def keep(self, traces: Path, number: int, index: int) -> None:
        """Keep for the page what is left of a turn's newest screenshots."""
        folder = self._replay.folder / KEPT / self._cell.name
        if len(list(folder.glob("*.npz"))) >= self._replay.pictures:
            return
        found = last_traces(traces, self._names)
        turn = self._thread.turns[index]
        wanted = {len(turn.pictures) - 1 - ago for ago in ((turn.ago or 0), 0)}
        wanted |= set(sorted(found, reverse=True)[: max(0, _SHOWN - len(wanted))])
        shares: dict[str, Any] = {str(one): found[one].kept_fraction() for one in sorted(wanted) if one in found}
        if shares:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / f"{number:04d}-{index:03d}.npz", **shares)

    def forget(self, traces: Path) -> None:
        """Take the traces of this thread away: they are large."""
        for file in traces.glob(f"*_{self._nonce}-*.npz"):
            file.unlink(missing_ok=True)
