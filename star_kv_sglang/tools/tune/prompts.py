"""A recorded turn as token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_kv_sglang.tools.tune.errors import TuneError
from star_kv_sglang.tools.tune.recordings import Picture, Turn


class PromptWriter:
    """Writes prompts.

    Args:
        model: a checkpoint's folder, or its name where transformers finds it.

    Raises:
        TuneError: it has no tokenizer, or no chat template.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise TuneError(f"--model-path {model}: has no tokenizer that can be loaded ({first})") from error
        if self._tokenizer.chat_template is None:
            # A checkpoint may keep it beside its processor alone.
            file = Path(model) / "chat_template.jinja"
            if not file.is_file():
                raise TuneError(f"--model-path {model}: has no chat template; add chat_template.jinja to its folder")
            self._tokenizer.chat_template = file.read_text(encoding="utf-8")

    def ids(self, turn: Turn, answers: Mapping[int, str]) -> tuple[int, ...]:
        """A prompt, with one image mark for each screenshot.

        Args:
            turn: what was sent.
            answers: the full cache's, by how many messages stand before them; where nobody has recorded any.

        Raises:
            TuneError: the model's template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                template_messages(turn, answers),
                tools=list(turn.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:
            # Templates raise what they like.
            raise TuneError(f"the model's chat template refuses a recorded prompt: {error}") from error
        return tuple(self._tokenizer(text).input_ids)


def template_messages(turn: Turn, answers: Mapping[int, str]) -> list[dict[str, Any]]:
    """A turn's messages as chat templates take them, with a part ``{"type": "image"}`` for each screenshot.

    Args:
        turn: what was sent.
        answers: as of `PromptWriter.ids`.
    """
    messages: list[dict[str, Any]] = []
    for number, one in enumerate(turn.said):
        if one.parts is None:
            messages.append({"role": one.role, "content": answers[number]})
            continue
        is_text = all(isinstance(part, str) for part in one.parts)
        content: Any = "".join(str(part) for part in one.parts) if is_text else [_part(part) for part in one.parts]
        messages.append({**one.other, "role": one.role, "content": content})
    return messages


def _part(part: str | Picture) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}
