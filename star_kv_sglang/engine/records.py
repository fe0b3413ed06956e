"""What the engine knows of every request: one record for each, made once, in one registry, and ended in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from star_kv_sglang.algorithm.state import TrajectoryState
from star_kv_sglang.cache.segments import Frame
from star_kv_sglang.engine.choice import Choice
from star_kv_sglang.engine.faults import FaultLog
from star_kv_sglang.engine.frames import frames_of_request
from star_kv_sglang.engine.host_copy import HostCopy
from star_kv_sglang.engine.kept import Computed
from star_kv_sglang.engine.ranges import profiled
from star_kv_sglang.engine.ranks import Agreement
from star_kv_sglang.request_params import RequestParams

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """What scoring has decided about a prompt that is not pruned yet.

    Attributes:
        choice: What each layer keeps, and the state that the prompt leaves behind.
        corrupt: Of each request of the batch, whether its scores were no numbers.
        index: Of this request in the batch.
        agreement: What all ranks have decided; None where there is one.
    """

    choice: Choice
    corrupt: HostCopy
    index: int
    agreement: Agreement | None = None

    def is_corrupt(self) -> bool:
        """Whether the scores were no numbers; waits for the batch's scores."""
        with profiled("state"):
            return bool(self.corrupt.wait()[self.index])


@dataclass(slots=True)
class RequestRecord:
    """One request, from its first batch to its end.

    Attributes:
        frames: Its screenshots in order, read once: SGLang drops its inputs when it ends. Empty where reading failed.
        knows_frames: They were read.
        params: What it says of itself.
        left_out: First positions of the screenshots among them that its client has left out of its prompt.
        placed_from: Position from which on its last forward has told the side pools what each slot holds of a
            screenshot, and what every layer was given of it; None where it has not, because planning or observing it
            failed.
        in_flight: It was scheduled, and its prompt is not yet in the tree.
        running: Its prompt is in the tree, and it has a row.
        has_continued: It has been taken for the continuation of a branch; one that is put back does so only once.
        scored: What its prune will do; None before it is scored and behind its prune.
        left_whole: The state that its prompt leaves behind although there was no memory to score it: its screenshots
            have been shown, so that the next turn's is the only new one. None where it was scored.
        computed: When its tokens were computed.
    """

    frames: tuple[Frame, ...]
    params: RequestParams
    knows_frames: bool = True
    left_out: frozenset[int] = frozenset()
    placed_from: int | None = None
    in_flight: bool = False
    running: bool = False
    has_continued: bool = False
    scored: ScoredPrompt | None = None
    left_whole: TrajectoryState | None = None
    computed: Computed = field(default_factory=Computed)


class Requests:
    """All requests that were scheduled and have not ended.

    No request is kept alive, nor its images: what SGLang forgets without a word, such as one that is aborted while it
    waits for the second time, is gone here too.

    Args:
        merge_size: Patches that the vision tower merges into one token, along each side.
        faults: A fault while screenshots are read costs the request its pruning.
    """

    def __init__(self, merge_size: int, faults: FaultLog) -> None:
        self._merge_size = merge_size
        self._faults = faults
        self._records: WeakKeyDictionary[Req, RequestRecord] = WeakKeyDictionary()
        self._num_scored = 0

    def of(self, req: Req) -> RequestRecord:
        """The record of a request; made when it is asked for first."""
        record = self._records.get(req)
        if record is None:
            # Whoever says something wrong of itself was refused before it was queued.
            record = RequestRecord((), RequestParams.of(req.sampling_params.custom_params), knows_frames=False)
            with self._faults.guard("reading a request's screenshots", "it stays unpruned", decides=False):
                record.frames = frames_of_request(req, self._merge_size)
                record.knows_frames = True
            self._records[req] = record
        return record

    def known(self, req: Req) -> RequestRecord | None:
        """The record of a request that was asked for before."""
        return self._records.get(req)

    def in_flight(self) -> Iterator[Req]:
        """Requests whose prompt is being computed."""
        return (req for req, record in self._records.items() if record.in_flight)

    def running(self) -> tuple[Req, ...]:
        """Requests whose prompt is in the tree and that go on."""
        return tuple(req for req, record in self._records.items() if record.running)

    def set_scored(self, req: Req, scored: ScoredPrompt) -> None:
        """A prompt was scored; it is pruned when it is in the tree."""
        record = self.of(req)
        self._num_scored += record.scored is None
        record.scored = scored

    def take_scored(self, record: RequestRecord) -> ScoredPrompt | None:
        """What is to happen to a prompt; asked once."""
        scored, record.scored = record.scored, None
        self._num_scored -= scored is not None
        return scored

    @property
    def any_scored(self) -> bool:
        """Whether a prompt waits to be pruned; costs the steps in between nothing."""
        return self._num_scored > 0

    def release(self, req: Req) -> None:
        """The request gave its row back: it has ended, or goes on later from the queue."""
        record = self._records.get(req)
        if record is None:
            return
        self.take_scored(record)
        record.left_whole = None
        record.in_flight = record.running = False
        if req.finished():
            del self._records[req]
