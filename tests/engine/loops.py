"""Agent loops whose client keeps a window over its screenshots, and the same conversation with nothing left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from tests.engine.conversation import COLS, ROWS, Answer, Chat, question, screenshot
from tests.engine.harness import TestEngine
from tests.engine.masked_reference import Drop, MaskedReference, read_drops, worst_difference

TOLERANCE = 1e-4
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Step:
    """One screenshot, and what was answered to it; nothing yet in the newest step.

    Attributes:
        image: The screenshot.
        words: Text beside it in its message.
        answer: Of the model.
        tool: A tool's message behind the answer.
    """

    image: Image.Image
    words: str = ""
    answer: str | None = None
    tool: str | None = None


@dataclass(frozen=True)
class Loop:
    """A conversation that begins with a task.

    Attributes:
        task: Text of the first message.
        steps: Oldest first.
    """

    task: str
    steps: tuple[Step, ...] = ()

    def show(self, image: Image.Image, words: str = "") -> Loop:
        """The loop with a new screenshot."""
        return replace(self, steps=(*self.steps, Step(image, words)))

    def reply(self, answer: str, tool: str | None = None) -> Loop:
        """The loop with the answer to its newest screenshot."""
        return replace(self, steps=(*self.steps[:-1], replace(self.steps[-1], answer=answer, tool=tool)))

    def newest(self, size: int) -> range:
        """Numbers of the newest screenshots."""
        return range(max(0, len(self.steps) - size), len(self.steps))

    def prompt(self, shown: Collection[int] | None = None, *, placeholder: str | None = None) -> Chat:
        """What a client sends that shows these screenshots, all where None; the others' messages are dropped, or have a
        text in the place of the screenshot.
        """
        text, images = f"<|im_start|>user  {self.task}<|im_end|>", []
        for number, step in enumerate(self.steps):
            if shown is None or number in shown:
                text += f"<|im_start|>user  {_IMAGE} {step.words}<|im_end|>"
                images.append(step.image)
            elif placeholder is not None:
                text += f"<|im_start|>user  {placeholder} {step.words}<|im_end|>"
            text += "<|im_start|>assistant "
            if step.answer is not None:
                text += f" {step.answer} <|im_end|>"
            if step.tool is not None:
                text += f"<|im_start|>tool  {step.tool}<|im_end|>"
        return Chat(text, tuple(images))


class WindowClient:
    """One agent, which sends a window over its screenshots and checks what it is answered.

    Args:
        engine: Serves it.
        reference: The same model.
        trace: Where the engine writes what it prunes.
        name: Of its requests, and of the namespace of its cache.
        token_pixels: Of the model.
        placeholder: Stands for a screenshot that it leaves out; None: the whole message goes.
    """

    def __init__(
        self, engine: TestEngine, reference: MaskedReference, trace: Path, name: str, *, token_pixels: int = 28,
        placeholder: str | None = None,
    ) -> None:  # fmt: skip
        self.loop = Loop("click red A")
        self.name = name
        self.salt = name
        self._engine, self._reference, self._trace = engine, reference, trace
        self._token_pixels, self._placeholder = token_pixels, placeholder
        self._num_stored = 0
        self._whole = Chat()
        self._names: tuple[str, ...] = (name,)

    def fork(self, name: str) -> WindowClient:
        """Another agent that has seen the same."""
        other = copy(self)
        other.name, other._names = name, (*self._names, name)
        return other

    def see(self, seed: int, words: str | None = None) -> None:
        """A new screenshot."""
        image = screenshot(seed, COLS, ROWS, self._token_pixels)
        self.loop = self.loop.show(image, question(seed) if words is None else words)

    def prompt(self, shown: Collection[int]) -> Chat:
        """What it sends."""
        return self.loop.prompt(shown, placeholder=self._placeholder)

    def new_from(self, shown: Collection[int]) -> int:
        """From which position on what it sends is not cached."""
        num_new = self._length(self.loop.prompt()) - self._num_stored
        return self._length(self.prompt(shown)) - num_new

    @property
    def rid(self) -> str:
        """Of its next request."""
        return f"{self.name}-turn{len(self.loop.steps) - 1}"

    def ask(self, shown: Collection[int], num_tokens: int = 4, *, is_traced: bool = True, **wishes: object) -> Answer:
        """Send some screenshots; see `take`."""
        answer = self._engine.answer(
            self.prompt(shown), num_tokens, logprob_from=self.new_from(shown), rid=self.rid, extra_key=self.salt,
            custom_params=wishes or None,
        )  # fmt: skip
        return self.take(answer, shown, is_traced=is_traced)

    def take(self, answer: Answer, shown: Collection[int], *, is_traced: bool = True) -> Answer:
        """Make sure that all but the new part was cached, and that the answer is right, where the trace tells all that
        was pruned; go on with it.
        """
        self._whole = self.loop.prompt()
        assert answer.prompt_len == self._length(self.prompt(shown))
        assert answer.cached == self.new_from(shown)
        assert not is_traced or self.difference(answer, self.drops()) < TOLERANCE
        self._num_stored = self._length(self.loop.prompt()) + len(answer.token_ids) - 1
        self.loop = self.loop.reply(answer.text)
        return answer

    def drops(self) -> list[Drop]:
        """What was dropped of what it has seen."""
        return [drop for drop in read_drops(self._trace) if drop.rid.rpartition("-turn")[0] in self._names]

    def difference(self, answer: Answer, drops: Sequence[Drop]) -> float:
        """Of its newest answer from a forward over all that it has seen, in which some of it is hidden."""
        whole = self._whole
        want = self._reference.logprobs(whole, answer.token_ids, drops)
        return worst_difference(
            replace(answer, prompt_len=self._length(whole)), want, self._reference.prompt_ids(whole)
        )

    def _length(self, chat: Chat) -> int:
        return len(self._reference.prompt_ids(chat))
