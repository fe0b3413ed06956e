"""A step as chat messages: the task, the screenshots and true actions so far, and the screenshot to act on.

The history is append-only: the messages of a step are those of the step before, and more, so that a server finds them
in its radix tree. Bounding the number of screenshots (``history_frames``) gives this up: old ones leave the middle of
the prompt.
"""

from __future__ import annotations

from functools import lru_cache

from star_kv_sglang.tools.chat import Message
from star_kv_sglang.tools.eval.errors import EvalError
from star_kv_sglang.tools.eval.families.base import ModelFamily
from star_kv_sglang.tools.eval.samples import Episode, Screenshot, TaskKind
from star_kv_sglang.tools.resize import Size

DROPPED_FRAME = "(an earlier screenshot, no longer shown)"


def sent_size(episode: Episode, index: int) -> Size:
    """The size of the screenshot in view at a step: its own, or the last one before.

    Raises:
        EvalError: there is none.
    """
    for step in reversed(episode.steps[: index + 1]):
        if step.screenshot is not None:
            return step.screenshot.sent_size
    raise EvalError(f"{episode.steps[index].id}: no screenshot was shown up to this step")


def build_messages(
    family: ModelFamily, kind: TaskKind, episode: Episode, index: int, history_frames: int | None
) -> list[Message]:
    """The messages of a step.

    Args:
        history_frames: how many of the earlier screenshots are shown; None for all.

    Raises:
        EvalError: an image has a size that the model cannot see, or a true action has no word in its language.
    """
    messages: list[Message] = []
    system = family.system_text(kind, sent_size(episode, 0))
    if system is not None:
        messages.append({"role": "system", "content": system})
    frames = [number for number in range(index) if episode.steps[number].screenshot is not None]
    dropped = set() if history_frames is None else set(frames[: max(0, len(frames) - history_frames)])
    for number, step in enumerate(episode.steps[: index + 1]):
        before, after = family.turn_texts(kind, episode, number)
        image = [] if step.screenshot is None or number in dropped else [_image(step.screenshot)]
        text = DROPPED_FRAME if number in dropped else ""
        content = [*_text(before), *image, *_text(text), *_text(after)]
        messages.append({"role": "user", "content": content})
        if number < index:
            reply = family.render(kind, step.truth, step.thought, sent_size(episode, number))
            messages.append({"role": "assistant", "content": reply})
    return messages


def _text(text: str) -> list[Message]:
    return [{"type": "text", "text": text}] if text else []


def _image(screenshot: Screenshot) -> Message:
    return {"type": "image_url", "image_url": {"url": _data_url(screenshot)}}


# A history repeats its screenshots at every turn.
@lru_cache(maxsize=64)
def _data_url(screenshot: Screenshot) -> str:
    return screenshot.data_url()
