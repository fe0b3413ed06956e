"""A warning of ours fails the test that meets it, whatever its category; see `filterwarnings` in pyproject.toml."""

from __future__ import annotations

import warnings

import pytest

_WARN = "import warnings; warnings.warn('new', category)"


@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, RuntimeWarning, ResourceWarning])
@pytest.mark.parametrize("module", ["star_kv_sglang", "star_kv_sglang.cache.ledger", "tests.cases", "tinygui", "demo"])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="new"):
        exec(_WARN, {"__name__": module, "category": category})


@pytest.mark.parametrize("module", ["sglang.srt", "star_kv_sglang_of_others"])
def test_one_of_another_package_is_none(module: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        exec(_WARN, {"__name__": module, "category": UserWarning})
    assert len(seen) == 1


def test_a_warning_in_a_test_is_an_error_too() -> None:
    with pytest.raises(UserWarning, match="new"):
        warnings.warn("new", stacklevel=1)
