"""A server's chat template is read off its prompts, or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2
import pytest

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.frontend import read_template

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CONTENT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}" + IMAGE + "{% endif %}{% endfor %}{% endif %}"
)
QWEN = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n" + CONTENT + "<|im_end|>\n{% endfor %}"
    "{% if opens %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = QWEN.replace("{{ m.content }}", "{{ m.content if loop.last else '...' }}")
"""What was said before the last message is left out."""


def server(template: str) -> Any:
    """Tokens are special marks and single characters."""
    vocabulary: list[str] = []

    def encode(text: str) -> list[int]:
        parts = re.findall(r"<\|[a-z_]+\|>|.", text, re.DOTALL)
        vocabulary.extend(part for part in parts if part not in vocabulary)
        return [vocabulary.index(part) for part in parts]

    def ask(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/detokenize":
            return {"text": ["".join(vocabulary[token] for token in tokens) for tokens in body["tokens"]]}
        if "prompt" in body:
            return {"tokens": encode(body["prompt"])}
        opens = body["add_generation_prompt"]
        return {
            "tokens": encode(
                jinja2.Template(template, keep_trailing_newline=True).render(messages=body["messages"], opens=opens)
            )
        }

    return ask


def test_prefixes_suffixes_the_image_and_the_default_system_message_are_found() -> None:
    found = read_template("model", server(QWEN), shows_images=True)
    assert found.role_prefix_and_suffix == {
        role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")
    }
    assert found.image_token == IMAGE
    assert found.default_system_prompt == "You are helpful."
    assert list(found.stop_str) == ["<|im_end|>"]


def test_a_model_without_images_has_a_template_too() -> None:
    assert read_template("model", server(QWEN), shows_images=False).image_token == ""


@pytest.mark.parametrize(
    "template", [FORGETFUL, QWEN.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")]
)
def test_what_is_more_than_prefixes_and_suffixes_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="more than a prefix and a suffix"):
        read_template("model", server(template), shows_images=True)
