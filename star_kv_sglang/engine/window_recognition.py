"""Clients that leave whole screenshots out of their prompts are served from the branch that has them.

A prompt is recognised when it is queued, and again before it is matched with the tree: it then has the ids that its
branch has, and everything behind the tree works as ever. Where the branch has gone in the meantime it is computed as it
came. What a prompt leaves out is pruned as soon as nobody else can see it, before the prompt is computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from star_kv_sglang.cache.alignment import Alignment, Fit
from star_kv_sglang.cache.lookup import ids_of_path
from star_kv_sglang.cache.message_index import MessageIndex, Namespace
from star_kv_sglang.cache.messages import START_OF_MESSAGE, Message
from star_kv_sglang.cache.radix_cache import StarRadixCache, Stored
from star_kv_sglang.config import ALL
from star_kv_sglang.engine.compaction import Target, prune_targets, punch_row, target_slots
from star_kv_sglang.engine.context import EngineContext
from star_kv_sglang.engine.faults import committing
from star_kv_sglang.engine.ranges import profiled, stage
from star_kv_sglang.engine.records import RequestRecord, Requests
from star_kv_sglang.engine.rewriting import Sent, can_be_rewritten, rewrite
from star_kv_sglang.engine.sharing import PromptSharing
from star_kv_sglang.engine.telemetry import Telemetry
from star_kv_sglang.errors import UnsupportedSetupError
from star_kv_sglang.request_params import RequestParams

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.scheduler import Scheduler


@dataclass
class RecognisedWindow:
    """A prompt that has left screenshots out.

    Attributes:
        fit: The branch that it lies on.
        sent: The prompt as it came.
        is_cut: What it leaves out was pruned, as far as nobody else can see it.
    """

    fit: Fit
    sent: Sent
    is_cut: bool = False

    @property
    def num_added(self) -> int:
        """Positions that the prompt has and its client did not send."""
        return self.fit.held - self.fit.sent


class WindowRecognition:
    """Recognises windows, and undoes it.

    Args:
        context: What the engine's parts share.
        requests: Their records.
        sharing: What others can use stays whole.
        telemetry: Is told what was pruned.
        scheduler: Its tokenizer, and the lengths that it takes.

    Raises:
        UnsupportedSetupError: The tokenizer has no token that begins a message, or there is none.
    """

    def __init__(
        self,
        context: EngineContext,
        requests: Requests,
        sharing: PromptSharing,
        telemetry: Telemetry,
        scheduler: Scheduler,
    ) -> None:
        self._context = context
        self._tree = context.tree
        self._counters = context.counters
        self._faults = context.faults
        self._requests = requests
        self._sharing = sharing
        self._telemetry = telemetry
        self._scheduler = scheduler
        self._by_default = context.config.recognise_windows == ALL
        tokenizer = scheduler.tokenizer
        placeholder = context.config.window_placeholder
        replace = None if placeholder is None else _Replacement(tokenizer, placeholder)
        self._index = MessageIndex(_start_token(tokenizer), replace)
        self._tree.messages = self._index
        self._windows: WeakKeyDictionary[Req, RecognisedWindow] = WeakKeyDictionary()
        self._own_keys: WeakKeyDictionary[Req, str | None] = WeakKeyDictionary()

    def window_of(self, req: Req) -> RecognisedWindow | None:
        """What a request has left out, where that was recognised."""
        return self._windows.get(req)

    def note(self, tree: StarRadixCache, stored: Stored) -> None:
        """A request has stored something: its messages can be found from now on."""
        record = self._requests.of(stored.req)
        if record.knows_frames and stored.path:
            ids = stored.req.full_untruncated_fill_ids
            with self._faults.guard("noting messages", "windows over them are not recognised"):
                self._index.note(tree, stored.path, ids, record.frames, _namespace(stored.req))

    def recognise(self, req: Req) -> None:
        """A request waits, or is about to be matched: if it leaves screenshots out, it gets its branch's prompt."""
        if req in self._windows or req.multimodal_inputs is None:
            return
        record = self._requests.of(req)
        wants = self._may_recognise(req, record.params)
        if not record.frames or not (wants or self._index.any_lost):
            return
        with profiled("recognise"), self._faults.guard("recognising a window", "the prompt is computed as it came"):
            self._recognise(req, record, wants=wants)

    def _may_recognise(self, req: Req, params: RequestParams) -> bool:
        wished = self._by_default if params.recognise_window is None else params.recognise_window
        # What each layer kept is told by positions, which the client would take for those of its own prompt.
        return wished and not params.return_kept and not req.retracted_stain and can_be_rewritten(req)

    def _recognise(self, req: Req, record: RequestRecord, *, wants: bool) -> None:
        own = self._own_keys.setdefault(req, req.extra_key), req.cache_salt or None
        alignment = Alignment(self._tree, self._index, req.origin_input_ids, record.frames)
        namespace, fit = _find(alignment, own, self._index, wants=wants)
        if fit is not None:
            held = ids_of_path(self._tree, fit.last, fit.held)
            sent = rewrite(req, record, fit, held, max_len=self._scheduler.max_req_len - 1)
            if sent is None:
                namespace, _ = _find(alignment, own, self._index, wants=False)
            else:
                self._windows[req] = RecognisedWindow(fit, sent)
        req.extra_key = namespace[0]

    def match(self, req: Req, match: Callable[[], Any]) -> Any:
        """Recognise a request's window and match its prompt; where its branch has gone, match it as it came.

        Args:
            req: The request.
            match: Matches it as it is.
        """
        for _ in range(2):
            self.recognise(req)
            result = match()
            window = self._windows.get(req)
            if window is None or req.prefix_len >= window.fit.held:
                return result
            self._undo(req, window)
        # As it came, and apart from a branch that has lost what it sends.
        with self._faults.guard("looking for a prompt's branch", "it is computed as it came"):
            self._recognise(req, self._requests.of(req), wants=False)
        return match()

    def _undo(self, req: Req, window: RecognisedWindow) -> None:
        del self._windows[req]
        window.sent.put_back(req, self._requests.of(req))
        req.cached_tokens = max(0, req.cached_tokens - window.num_added)
        self._counters.num_undone_windows += 1

    def scheduled(self, req: Req) -> None:
        """A request runs next: what it has left out goes, as far as only it could see it."""
        window = self._windows.get(req)
        if window is None or window.is_cut:
            return
        window.is_cut = True
        with self._faults.guard("pruning what a client has left out", "it stays"):
            self._cut(req, window)

    def released(self, req: Req) -> None:
        """A request has given its row back; what it leaves out may have become private when it runs again."""
        window = self._windows.get(req)
        if window is not None:
            window.is_cut = False

    def _cut(self, req: Req, window: RecognisedWindow) -> None:
        path = self._tree.path(req.last_node)
        private_from = self._sharing.private_from(path, req)
        left_out = {frame.start for frame in window.fit.left_out}
        targets = [
            Target(node, segment, 0)
            for node in path
            for segment in self._tree.extra(node).segments
            if segment.frame.start in left_out and segment.start >= private_from and segment.num_live
        ]
        if not targets:
            return
        parts, record = self._context.parts, self._requests.of(req)
        slots = torch.cat([target_slots(self._tree, target) for target in targets])
        units = parts.pools.side.frame_offsets.shape[0]
        nothing = torch.full((units, len(slots)), -1, dtype=torch.int32, device=slots.device)
        with stage("prune"):
            freed = prune_targets(self._tree, targets, slots, nothing, parts.pools, parts.ops)
            with committing():
                for target in targets:
                    self._tree.extra(target.node).lost.add(target.segment.frame.start)
                    punch_row(self._tree, req, target)
        self._index.any_lost = True
        self._counters.num_pruned_tokens += len(freed)
        segments = [(target.segment, slots[:0]) for target in targets]
        self._telemetry.write_trace(req, record, segments, parts.pools.side, 0.0, after=req.prefix_len)


def _find(
    alignment: Alignment, namespace: Namespace, index: MessageIndex, *, wants: bool
) -> tuple[Namespace, Fit | None]:
    """Where a prompt lies: in its own namespace, or in one beside it where that has lost what it sends.

    A tree has one node for a prefix. A prompt that sends what another one has left out is kept apart from it.
    """
    extra_key, cache_salt = namespace
    beside = 0
    while True:
        fit = alignment.best(namespace) if wants else None
        if fit is not None or not index.any_lost or not alignment.is_lost(namespace):
            return namespace, fit
        beside += 1
        namespace = (f"{extra_key or ''}\0whole{beside}", cache_salt)


def _namespace(req: Req) -> Namespace:
    return req.extra_key, req.cache_salt or None


def _start_token(tokenizer: Any) -> int:
    token = None if tokenizer is None else tokenizer.get_vocab().get(START_OF_MESSAGE)
    if token is None:
        raise UnsupportedSetupError(
            [
                f"--kv-recognise-windows: the model's tokenizer has no {START_OF_MESSAGE}, which would tell messages "
                "apart; drop it"
            ]
        )
    return int(token)


class _Replacement:
    """What a client sends for a message whose screenshots are replaced by a text.

    Args:
        tokenizer: Of the model.
        placeholder: The text.
    """

    def __init__(self, tokenizer: Any, placeholder: str) -> None:
        self._tokenizer = tokenizer
        self._placeholder = placeholder
        self._ids = self._encoded(placeholder)
        twice = f"{placeholder}  {placeholder}"
        self._keeps_spaces = self._decoded(self._encoded(twice)) == twice

    def __call__(self, ids: array[int], message: Message) -> bytes:
        """The message with the text in the place of each screenshot, and of the tokens around it."""
        parts, position = [], message.start
        for frame in message.frames:
            parts.append(ids[position : frame.start - 1])
            position = frame.end + 1
        parts.append(ids[position : message.end])
        if self._keeps_spaces:
            # Letters of the text and of what stands beside it may be one token.
            return self._encoded(self._placeholder.join(map(self._decoded, parts))).tobytes()
        joined = parts[0]
        for part in parts[1:]:
            joined += self._ids + part
        return joined.tobytes()

    def _encoded(self, text: str) -> array[int]:
        return array("q", self._tokenizer.encode(text, add_special_tokens=False))

    def _decoded(self, ids: array[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
