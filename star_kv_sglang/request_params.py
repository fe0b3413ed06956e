"""What a request may say about its KV cache: read, checked, and told to the client when it is wrong.

The same record serves the process that answers clients and the one that schedules. Keys that do not begin with ``kv_``
belong to SGLang or to other plugins and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.limits import COUNT, POSITIVE_SHARE, SHARE_BELOW_ONE

PREFIX = "kv_"
CUSTOM = "custom_params"
SAMPLING = "sampling_params"
META_INFO = "return_meta_info"
OPTIONS = "options"
"""Sampling parameters in Ollama's API."""
IN_OPENAI_BODY = '"custom_params": {"KEY": ...} at the top level of the body'
IN_NATIVE_BODY = '"sampling_params": {"custom_params": {"KEY": ...}}'
IN_PREFERENCES = '"custom_params": {"KEY": ...}'


@dataclass(frozen=True)
class RequestParams:
    """A request's own wishes, from its ``custom_params``.

    Attributes:
        share: Others will use the prompt: keep its prefix whole (``kv_share``).
        budget: Share of its private visual tokens that stay, in (0, 1] (``kv_budget``); None for the server's.
        image_window: How many of its branch's newest screenshots keep what the policy says (``kv_image_window``); None
            for the server's.
        window_rest: Share of the private screenshots before them, all together, that stays, in [0, 1)
            (``kv_window_rest``); None for the server's.
        recognise_window: It is served from the branch that has the screenshots which it leaves out
            (``kv_recognise_window``); None for the server's way.
        trace: Its prunes are written to ``trace_dir``, where the server has one (``kv_trace``).
        return_kept: Its answer comes with what each layer kept at each prune that it has seen (``kv_return_kept``).
    """

    share: bool = False
    budget: float | None = None
    image_window: int | None = None
    window_rest: float | None = None
    recognise_window: bool | None = None
    trace: bool = True
    return_kept: bool = False

    @classmethod
    def of(cls, custom_params: Any) -> RequestParams:
        """Read and check a request's ``custom_params``; a key that is null counts as not given.

        Raises:
            ConfigError: A value is wrong, or a key that begins with ``kv_`` is unknown.
        """
        if custom_params is None:
            return cls()
        if not isinstance(custom_params, Mapping):
            raise ConfigError(f"{CUSTOM} {custom_params!r} must be an object, such as {{{_EXAMPLES}}}")
        given = _ours(custom_params)
        for key, value in given.items():
            _check(key, value)
        return cls(
            share=given.get("kv_share", cls.share),
            budget=_share(given.get("kv_budget")),
            image_window=given.get("kv_image_window"),
            window_rest=_share(given.get("kv_window_rest")),
            recognise_window=given.get("kv_recognise_window"),
            trace=given.get("kv_trace", cls.trace),
            return_kept=given.get("kv_return_kept", cls.return_kept),
        )


def problem_of(
    custom_params: Any, *, prunes: bool = True, has_window: bool = False, recognises: bool = True
) -> str | None:
    """What is wrong with a request's ``custom_params``, for its client; None where nothing is.

    Args:
        custom_params: As the request brings them.
        prunes: The server's policy observes prompts and prunes.
        has_window: The server has a window for requests that name none.
        recognises: The server remembers what it takes to recognise a window.
    """
    try:
        params = RequestParams.of(custom_params)
    except ConfigError as error:
        return str(error)
    if params.image_window is not None and not prunes:
        return (
            "kv_image_window: this server's policy prunes nothing, so that no screenshot would leave the window; it is "
            "to be started with --kv-policy window, or with a budget below 1"
        )
    if params.window_rest is not None and params.image_window is None and not has_window:
        return "kv_window_rest is of a window, and there is none; say kv_image_window beside it"
    if params.recognise_window and not recognises:
        return (
            "kv_recognise_window: this server remembers no messages, so that it cannot tell which screenshots are left "
            "out; it is to be started with --kv-recognise-windows asked, or all"
        )
    if params.recognise_window and params.return_kept:
        return (
            "kv_return_kept tells positions, and with kv_recognise_window these are not those of the prompt that was "
            "sent; drop one of them"
        )
    return None


def check_openai_body(body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check the body of a request of the OpenAI API.

    Args:
        body: The JSON object.
        known: Keys that SGLang itself knows at its top level.

    Raises:
        ConfigError: A value is wrong, a key is unknown, or in a place where nobody reads it; or what is asked for has
            no place in the answer.
    """
    sampling = _mapping(body.get(SAMPLING))
    _refuse_misplaced(set(_ours(body)) - set(known), "at the top level", IN_OPENAI_BODY)
    _refuse_misplaced(_ours(sampling), f'in "{SAMPLING}"', IN_OPENAI_BODY)
    _refuse_misplaced(_ours(_mapping(sampling.get(CUSTOM))), f'in "{CUSTOM}" of "{SAMPLING}"', IN_OPENAI_BODY)
    params = RequestParams.of(body.get(CUSTOM))
    if params.return_kept and not (META_INFO in known and body.get(META_INFO)):
        raise ConfigError(
            f'kv_return_kept needs a place in the answer: add "{META_INFO}": true to a body of /v1/chat/completions '
            "that is not streamed, or ask /generate, which streams it too"
        )


def check_native_body(body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check the body of a request to ``/generate``. Arguments and errors as in :func:`check_openai_body`."""
    _refuse_misplaced(set(_ours(body)) - set(known), "at the top level", IN_NATIVE_BODY)
    _refuse_misplaced(_ours(_mapping(body.get(CUSTOM))), f'in "{CUSTOM}" at the top level', IN_NATIVE_BODY)
    given = body.get(SAMPLING)
    for sample in given if isinstance(given, list) else [given]:
        sampling = _mapping(sample)
        _refuse_misplaced(_ours(sampling), f'in "{SAMPLING}"', IN_NATIVE_BODY)
        RequestParams.of(sampling.get(CUSTOM))


def check_body_without_wishes(body: Mapping[str, Any], known: Iterable[str], *, endpoint: str) -> None:
    """Check the body of a request to an endpoint that hands no ``custom_params`` on: what is asked there has no effect.

    Args:
        body: The JSON object.
        known: Keys that SGLang itself knows at its top level.
        endpoint: Its path.

    Raises:
        ConfigError: A key of ours is in it, wherever somebody may have looked for its place.
    """
    right = f"{IN_OPENAI_BODY} of /v1/chat/completions: {endpoint} carries none"
    _refuse_misplaced(set(_ours(body)) - set(known), "at the top level", right)
    for name in (CUSTOM, SAMPLING, OPTIONS):
        _refuse_misplaced(_ours(_mapping(body.get(name))), f'in "{name}"', right)
    _refuse_misplaced(
        _ours(_mapping(_mapping(body.get(SAMPLING)).get(CUSTOM))), f'in "{CUSTOM}" of "{SAMPLING}"', right
    )


def problems_of_preferences(sampling_params: Mapping[str, Any]) -> list[str]:
    """What is wrong with the kv_* keys that every request gets which names none, a line for each key.

    Args:
        sampling_params: The object of ``--preferred-sampling-params``.
    """
    problems = []
    for key in sorted(_ours(sampling_params)):
        try:
            _refuse_misplaced([key], "at the top level", IN_PREFERENCES)
        except ConfigError as error:
            problems.append(str(error))
    custom = sampling_params.get(CUSTOM)
    parts = [{key: value} for key, value in custom.items()] if isinstance(custom, Mapping) else [custom]
    return problems + [problem for part in parts if (problem := problem_of(part)) is not None]


def _ours(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Keys that begin as ours do. One that is null counts as not given."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(name, str) and name.startswith(PREFIX) and value is not None
    }


def _mapping(value: Any) -> Mapping[Any, Any]:
    """Other values are refused elsewhere, or nobody reads them."""
    return value if isinstance(value, Mapping) else {}


def _refuse_misplaced(keys: Iterable[str], place: str, right: str) -> None:
    for key in sorted(keys):
        _refuse_unknown(key)
        raise ConfigError(f"{key} {place} is read by nobody; put it into {right.replace('KEY', key)}")


def _check(key: str, value: Any) -> None:
    _refuse_unknown(key)
    is_valid, wanted = KEYS[key]
    if not is_valid(value):
        raise ConfigError(f"{key} {value!r} in {CUSTOM} must be {wanted}")


def _refuse_unknown(key: str) -> None:
    if key not in KEYS:
        close = get_close_matches(key, KEYS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{key} is not known; {CUSTOM} takes {', '.join(KEYS)}{hint}")


def _share(value: float | None) -> float | None:
    return None if value is None else float(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kv_share": (_is_bool, "true or false: whether others will use this prompt, so that its prefix stays whole"),
    "kv_budget": (
        POSITIVE_SHARE.holds,
        f"{POSITIVE_SHARE}: the share of the private screenshot tokens that stay; leave it out for the server's",
    ),
    "kv_image_window": (
        COUNT.holds,
        f"{COUNT}: the newest screenshots that the window holds; leave it out for the server's",
    ),
    "kv_window_rest": (
        SHARE_BELOW_ONE.holds,
        f"{SHARE_BELOW_ONE}: the share of the private screenshots before the window that stays; leave it out for the "
        "server's",
    ),
    "kv_recognise_window": (
        _is_bool,
        "true or false: whether screenshots that this prompt leaves out are looked for in the cache; leave it out for "
        "the server's way",
    ),
    "kv_trace": (_is_bool, "true or false: whether what is pruned of this prompt is written to trace_dir"),
    "kv_return_kept": (_is_bool, "true or false: whether the answer comes with what each layer kept of its prompt"),
}
_EXAMPLES = '"kv_share": true, "kv_budget": 0.1'
