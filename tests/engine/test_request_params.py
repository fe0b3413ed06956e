"""What a request may say of itself: right values, wrong ones, unknown keys, wrong places."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from star_kv_sglang.errors import ConfigError
from star_kv_sglang.request_params import (
    RequestParams,
    check_body_without_wishes,
    check_native_body,
    check_openai_body,
    problem_of,
)

NATIVE_FIELDS = {"text", "sampling_params", "kv_hints"}
OPENAI_FIELDS = {"model", "messages", "custom_params"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, RequestParams()),
        ({}, RequestParams(share=False, budget=None, trace=True)),
        ({"kv_share": True}, RequestParams(share=True)),
        ({"kv_share": False, "kv_budget": 1}, RequestParams(budget=1.0)),
        ({"kv_budget": 0.1, "kv_trace": False}, RequestParams(budget=0.1, trace=False)),
        ({"kv_share": None, "kv_budget": None, "kv_trace": None, "kv_return_kept": None}, RequestParams()),
        ({"kv_return_kept": True}, RequestParams(return_kept=True)),
        ({"kv_image_window": 5, "kv_window_rest": 0}, RequestParams(image_window=5, window_rest=0.0)),
        ({"thinking_budget": 7, "kvx": "no", 3: 4, "__req__": object()}, RequestParams()),
    ],
)
def test_right_values(given: Any, expected: RequestParams) -> None:
    assert RequestParams.of(given) == expected


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"kv_share": "no"}, ["kv_share 'no'", "true or false"]),
        ({"kv_share": 1}, ["kv_share 1", "true or false"]),
        ({"kv_trace": 0}, ["kv_trace 0", "true or false"]),
        ({"kv_return_kept": 1}, ["kv_return_kept 1", "true or false"]),
        ({"kv_budget": 7}, ["kv_budget 7 ", "(0, 1]", "leave it out"]),
        ({"kv_budget": "abc"}, ["kv_budget 'abc'", "(0, 1]"]),
        ({"kv_budget": True}, ["kv_budget True", "(0, 1]"]),
        ({"kv_budget": 0}, ["kv_budget 0 ", "(0, 1]"]),
        ({"kv_image_window": 0}, ["kv_image_window 0 ", "1 or more"]),
        ({"kv_recognise_window": "yes"}, ["kv_recognise_window 'yes'", "true or false"]),
        ({"kv_image_window": -1}, ["kv_image_window -1 ", "1 or more"]),
        ({"kv_image_window": 2.5}, ["kv_image_window 2.5 ", "whole number"]),
        ({"kv_image_window": True}, ["kv_image_window True ", "whole number"]),
        ({"kv_window_rest": 1}, ["kv_window_rest 1 ", "[0, 1)"]),
        ({"kv_budget": float("nan")}, ["kv_budget nan", "(0, 1]"]),
        ({"kv_budgt": 0.1}, ["kv_budgt is not known", "kv_share, kv_budget, ", "did you mean kv_budget?"]),
        ({"kv_zzzzzzzzz": None, "kv_frob": 1}, ["kv_frob is not known", "takes kv_share"]),
        ("kv_share", ["custom_params 'kv_share'", "must be an object", '{"kv_share": true']),
        ([], ["custom_params []", "must be an object"]),
    ],
)
def test_wrong_values_and_unknown_keys(given: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        RequestParams.of(given)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_what_resembles_nothing_has_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        RequestParams.of({"kv_xyxyxyxyxyxyxy": 1})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"kv_budget": 0.1}, ["kv_budget at the top level", '"custom_params": {"kv_budget": ...}']),
        ({"kv_budgt": 0.1}, ["kv_budgt is not known", "did you mean kv_budget?"]),
        ({"sampling_params": {"kv_share": True}}, ['kv_share in "sampling_params"', '"custom_params": {"kv_share"']),
        ({"sampling_params": {"custom_params": {"kv_share": True}}}, ['"custom_params" of "sampling_params"']),
        ({"custom_params": {"kv_share": "no"}}, ["kv_share 'no'"]),
        ({"custom_params": {"kv_return_kept": "yes"}}, ["kv_return_kept 'yes'"]),
        ({"custom_params": {"kv_return_kept": True}}, ['"return_meta_info": true', "/generate"]),
        ({"custom_params": {"kv_return_kept": True}, "return_meta_info": False}, ['"return_meta_info": true']),
    ],
)
def test_wrong_places_in_a_body_of_openai(body: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_openai_body(body, OPENAI_FIELDS)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (
            {"kv_budget": 0.1},
            ["kv_budget at the top", '"sampling_params": {"custom_params": {"kv_budget": ...}}'],
        ),
        (
            {"custom_params": {"kv_share": True}},
            ['kv_share in "custom_params" at the top', '"sampling_params": {'],
        ),
        ({"sampling_params": {"kv_share": True}}, ['kv_share in "sampling_params"', '{"kv_share": ...}}']),
        ({"sampling_params": [{}, {"custom_params": {"kv_trace": "x"}}]}, ["kv_trace 'x'"]),
    ],
)
def test_wrong_places_in_a_native_body(body: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_native_body(body, NATIVE_FIELDS)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"kv_budget": 0.1}, "at the top level"),
        ({"custom_params": {"kv_budget": 0.1}}, 'in "custom_params"'),
        ({"sampling_params": {"kv_budget": 0.1}}, 'in "sampling_params"'),
        ({"sampling_params": {"custom_params": {"kv_budget": 0.1}}}, 'in "custom_params" of "sampling_params"'),
        ({"options": {"kv_budget": 0.1}}, 'in "options"'),
    ],
)
def test_a_body_that_carries_no_wishes_has_no_right_place(body: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_body_without_wishes({"model": "m", **body}, OPENAI_FIELDS, endpoint="/v1/responses")
    assert str(caught.value) == (
        f'kv_budget {place} is read by nobody; put it into "custom_params": {{"kv_budget": ...}} at the top level of '
        "the body of /v1/chat/completions: /v1/responses carries none"
    )
    check_body_without_wishes({"custom_params": {"other": 1}, "options": [], "sampling_params": None}, (), endpoint="/")


class Handle:
    """What the hook uses of SGLang's handle for calls by gRPC; the request's model is SGLang's."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, dict[str, Any]]] = []

    def _get_openai_request_class(self, serving_key: str) -> Any:
        from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, EmbeddingRequest

        return {"chat": ChatCompletionRequest, "embedding": EmbeddingRequest}[serving_key]

    def _safe_callback(self, chunk_callback: Any, payload: bytes, **kwargs: Any) -> None:
        self.told.append((payload, kwargs))


@pytest.mark.parametrize(
    ("serving_key", "body", "problem"),
    [
        pytest.param("chat", b'{"kv_budget": 0.1}', "is read by nobody", id="misplaced"),
        pytest.param("chat", b'{"custom_params": {"kv_budget": 7}}', "(0, 1]", id="wrong"),
        pytest.param("chat", b'{"custom_params": {"kv_budget": 0.1}}', None, id="right"),
        pytest.param("chat", b'{"kv_budget": 0.1', None, id="no_json_is_for_sglang_to_tell"),
        pytest.param("chat", b'["kv_budget"]', None, id="no_object_is_for_sglang_to_tell"),
        pytest.param("embedding", b'{"kv_budget": 0.1}', None, id="nothing_is_generated"),
    ],
)
def test_an_openai_call_by_grpc_is_checked_too(serving_key: str, body: bytes, problem: str | None) -> None:
    from star_kv_sglang.patches.hooks import around_run_openai_request

    went_on: list[bytes] = []

    async def original(handle: Handle, key: str, json_body: bytes, chunk_callback: Any, streaming: bool) -> None:
        went_on.append(json_body)

    handle = Handle()
    asyncio.run(around_run_openai_request(original, handle, serving_key, body, None, True))
    assert went_on == ([body] if problem is None else [])
    if problem is None:
        assert handle.told == []
        return
    ((payload, told),) = handle.told
    assert problem in json.loads(payload)["error"]["message"] and problem in told["error"] and told["finished"]


def test_right_places() -> None:
    wishes = {"kv_share": True, "kv_budget": 0.5, "kv_trace": False}
    check_openai_body({"model": "m", "custom_params": wishes}, OPENAI_FIELDS)
    returned = {"custom_params": {"kv_return_kept": True}, "return_meta_info": True}
    check_openai_body(returned, {*OPENAI_FIELDS, "return_meta_info"})
    with pytest.raises(ConfigError, match="needs a place in the answer"):
        check_openai_body(returned, {"custom_params"})
    for sampling in ({"custom_params": wishes}, [{"custom_params": wishes}, {}, {"custom_params": None}], None):
        check_native_body({"text": "t", "kv_hints": {}, "sampling_params": sampling}, NATIVE_FIELDS)


def test_a_window_that_nobody_would_hold_is_refused() -> None:
    wish = {"kv_image_window": 2}
    assert problem_of(wish) is None
    problem = problem_of(wish, prunes=False)
    assert problem is not None
    assert "--kv-policy window" in problem
    assert problem_of({"kv_share": True}, prunes=False) is None
    rest = {"kv_window_rest": 0.2}
    assert "kv_image_window beside it" in str(problem_of(rest))
    assert problem_of({**rest, **wish}) is None
    assert problem_of(rest, has_window=True) is None


def test_a_window_that_nobody_would_recognise_is_refused() -> None:
    wish = {"kv_recognise_window": True}
    assert RequestParams.of(wish).recognise_window is True
    assert problem_of(wish) is None
    assert "--kv-recognise-windows asked, or all" in str(problem_of(wish, recognises=False))
    assert problem_of({"kv_recognise_window": False}, recognises=False) is None
    assert "drop one of them" in str(problem_of({**wish, "kv_return_kept": True}))
