"""SGLang's frontend language with screenshots: a connection to a server that knows the server's own chat template.

endpoint = Endpoint("http://127.0.0.1:30000")
program.run(..., backend=endpoint)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import ChatTemplate, chat_template_registry
from sglang.utils import http_request

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.patches import activate

Message = Mapping[str, Any]
"""A chat message, or a part of its content."""
Tokens = list[int]

_ROLES = ("system", "user", "assistant")
_WORDS = ("user", "assistant")
"""Contents that are told apart by their first and by their last token, whatever the model."""
_NO_IMAGE: Message = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
"""Stands for an image where a prompt is written and not answered: nobody decodes it."""
_OUTPUTS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
"""What ``gen`` may ask for beside the text, by SGLang's name of it."""
_BLANKS = ("", " ")
"""What stands around the parts of a template; a tokenizer that cuts at blanks shows none of its own."""


class Endpoint(RuntimeEndpoint):
    """SGLang's ``RuntimeEndpoint`` for programs with any number of screenshots in a state.

    A fork's common part is sent once, ahead of the forks, so that the tree has it whole for all of them. ``gen`` with
    ``n`` gives a list of answers and goes on with the first.

    Args:
        base_url: The server.
        api_key: Its key, where it has one.
        verify: File of certificates, as SGLang takes it.
        chat_template_name: One of SGLang's own templates; the model's by default, which the server is asked for.

    Raises:
        ConfigError: The name is not known, or the model's template cannot be told.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
    ) -> None:
        if chat_template_name is not None and chat_template_name not in chat_template_registry:
            raise ConfigError(
                f"chat template {chat_template_name!r} must be one of {', '.join(sorted(chat_template_registry))}"
            )
        super().__init__(base_url, api_key, verify, chat_template_name or "default")
        # The server has no such request any more; SGLang then joins the texts.
        self.support_concate_and_append = False
        if chat_template_name is None:
            self.chat_template = self._template_of_the_model()
        activate.install_program_hooks()

    def generate(self, s: Any, sampling_params: Any) -> tuple[Any, Any]:
        """One answer with its ``meta_info``; with ``n`` above 1 a list of each."""
        if (sampling_params.n or 1) == 1:
            return super().generate(s, sampling_params)  # type: ignore[no-any-return]
        self._handle_dtype_to_regex(sampling_params)
        body = {"text": s.text_, "sampling_params": sampling_params.to_srt_kwargs()}
        wanted = {name: getattr(sampling_params, name, None) for name in _OUTPUTS}
        body |= {name: value for name, value in wanted.items() if value is not None}
        answers = self._generate_http_request(s, body)
        return [one["text"] for one in answers], [one["meta_info"] for one in answers]

    def generate_stream(self, s: Any, sampling_params: Any) -> Any:
        """One answer, in pieces.

        Raises:
            ConfigError: Several are asked for: their pieces come mixed.
        """
        if (sampling_params.n or 1) > 1:
            raise ConfigError(f"gen with n={sampling_params.n} cannot be streamed; run the program with stream=False")
        return super().generate_stream(s, sampling_params)

    def _add_images(self, s: Any, data: dict[str, Any]) -> None:
        """Send all of a state's images, and to each of several prompts its own."""
        # Token ids are pieces of an answer, scored without what stood before them.
        if not s.images_ or "text" not in data:
            return
        images = [encoded for _, encoded in s.images_]
        data["image_data"] = [images for _ in data["text"]] if isinstance(data["text"], list) else images

    def _template_of_the_model(self) -> ChatTemplate:
        model = self.get_model_name()
        try:
            return read_template(model, self._ask, shows_images=bool(self.model_info.get("has_image_understanding")))
        except (ConfigError, RuntimeError) as error:
            raise ConfigError(
                f"the chat template of {model} cannot be told by asking {self.base_url}: {error}; "
                "name one of SGLang's with chat_template_name"
            ) from error

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = http_request(self.base_url + path, json=body, api_key=self.api_key, verify=self.verify)
        self._assert_success(answer)
        return answer.json()


def read_template(name: str, ask: Callable[[str, Mapping[str, Any]], Any], *, shows_images: bool) -> ChatTemplate:
    """The chat template with which a server writes prompts, told by the tokens of a few short ones.

    Args:
        name: What to call it.
        ask: Posts a body to a path of the server and gives the answer's.
        shows_images: Whether the model takes images.

    Raises:
        ConfigError: Prompts cannot be put together from the parts that were found.
    """
    writer = _Writer(ask)
    system, user, assistant = (writer.around(role) for role in _ROLES)
    parts = [
        *system,
        *user,
        *assistant,
        writer.default_system(system, user),
        writer.image(user) if shows_images else [],
    ]
    *around, default_system, image = writer.texts(parts)
    for blank in _BLANKS:
        template = ChatTemplate(
            name=name,
            default_system_prompt=default_system or None,
            role_prefix_and_suffix={
                role: (around[2 * index] + blank, blank + around[2 * index + 1]) for index, role in enumerate(_ROLES)
            },
            stop_str=[around[-1].strip()] if around[-1].strip() else [],
            image_token=blank + image + blank,
        )
        if writer.writes_as(template, shows_images=shows_images):
            return template
    raise ConfigError("its prompts are more than a prefix and a suffix for each role")


class _Writer:
    """Prompts as a server writes them."""

    def __init__(self, ask: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self._ask = ask

    def around(self, role: str) -> tuple[Tokens, Tokens]:
        """Tokens before and behind the content of a role's message."""
        before = _before(role)
        one, other = (self._written([*before, {"role": role, "content": word}]) for word in _WORDS)
        num_before = len(self._written(before)) if before else 0
        behind = _num_common(one[::-1], other[::-1])
        return one[num_before : _num_common(one, other)], one[len(one) - behind :]

    def default_system(self, system: tuple[Tokens, Tokens], user: tuple[Tokens, Tokens]) -> Tokens:
        """What is told to the model where nobody gives it a system message; without the tokens of that role."""
        asked = {"role": "user", "content": _WORDS[0]}
        told = self._written([*_before("user"), asked])
        first = len(self._written(_before("user")))
        alone = self._written([asked])
        added = alone[: len(alone) - len(told[first:])]
        return added[len(system[0]) : len(added) - len(system[1])]

    def image(self, user: tuple[Tokens, Tokens]) -> Tokens:
        """What stands for an image."""
        before = _before("user")
        written = self._written([*before, {"role": "user", "content": [_NO_IMAGE]}])
        first = len(self._written(before)) + len(user[0])
        return written[first : len(written) - len(user[1])]

    def texts(self, parts: Sequence[Tokens]) -> list[str]:
        """Tokens as text, special ones too."""
        body = {"tokens": list(parts), "skip_special_tokens": False}
        found: list[str] = self._ask("/detokenize", body)["text"]
        return found

    def writes_as(self, template: ChatTemplate, *, shows_images: bool) -> bool:
        """Whether the server writes conversations as the frontend does with this template."""
        words: list[Message] = [{"type": "text", "text": word} for word in _WORDS]
        shown = [words[0], _NO_IMAGE, words[1], _NO_IMAGE] if shows_images else [words[0]]
        text = "".join(one.get("text", template.image_token) for one in shown)
        rest = [{"role": role, "content": _WORDS[1]} for role in ("assistant", "user")]
        starts: tuple[list[Any], ...] = ([], [{"role": "system", "content": _WORDS[0]}])
        for first in starts:
            ours = first or [{"role": "system", "content": None}]
            prompt = template.get_prompt([*ours, {"role": "user", "content": text}, *rest])
            prompt += template.get_prefix_and_suffix("assistant", [])[0]
            asked = [*first, {"role": "user", "content": shown}, *rest]
            encoded = self._ask("/tokenize", {"prompt": prompt, "add_special_tokens": False})["tokens"]
            if encoded != self._written(asked, opens_answer=True):
                return False
        return True

    def _written(self, messages: Sequence[Message], *, opens_answer: bool = False) -> Tokens:
        body = {"messages": list(messages), "add_generation_prompt": opens_answer}
        tokens: Tokens = self._ask("/tokenize", body)["tokens"]
        return tokens


def _before(role: str) -> list[Message]:
    """Messages that come before the first one of a role."""
    return [{"role": one, "content": _WORDS[0]} for one in _ROLES[: _ROLES.index(role)]]


def _num_common(one: Tokens, other: Tokens) -> int:
    """How many tokens two prompts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
