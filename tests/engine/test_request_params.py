"""What a request may say of itself: right values, wrong ones, unknown keys, wrong places."""

from __future__ import annotations

from typing import Any

import pytest

from star_kv_sglang.engine.request_params import RequestParams, check_native_body, check_openai_body
from star_kv_sglang.errors import ConfigError

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
        ({"kv_share": None, "kv_budget": None, "kv_trace": None}, RequestParams()),
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
        ({"kv_budget": 7}, ["kv_budget 7 ", "(0, 1]", "leave it out"]),
        ({"kv_budget": "abc"}, ["kv_budget 'abc'", "(0, 1]"]),
        ({"kv_budget": True}, ["kv_budget True", "(0, 1]"]),
        ({"kv_budget": 0}, ["kv_budget 0 ", "(0, 1]"]),
        ({"kv_budget": float("nan")}, ["kv_budget nan", "(0, 1]"]),
        ({"kv_budgt": 0.1}, ["kv_budgt is not known", "kv_share, kv_budget, kv_trace", "did you mean kv_budget?"]),
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


def test_right_places() -> None:
    wishes = {"kv_share": True, "kv_budget": 0.5, "kv_trace": False}
    check_openai_body({"model": "m", "custom_params": wishes}, OPENAI_FIELDS)
    for sampling in ({"custom_params": wishes}, [{"custom_params": wishes}, {}, {"custom_params": None}], None):
        check_native_body({"text": "t", "kv_hints": {}, "sampling_params": sampling}, NATIVE_FIELDS)
