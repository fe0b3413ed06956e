"""Ranges of the numbers that users give, and the one sentence that says what a number must be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from star_kv_sglang.errors import ConfigError


@dataclass(frozen=True)
class Limit:
    """A range of finite numbers; true and false are none.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        with_low: Whether ``low`` is in it.
        with_high: Whether ``high`` is.
        is_whole: Whether only whole numbers are.
    """

    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True
    is_whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if self.high == math.inf:
            return f"{kind}, {self.low:g} or more" if self.with_low else f"{kind} above {self.low:g}"
        left, right = "[" if self.with_low else "(", "]" if self.with_high else ")"
        return f"{kind} in {left}{self.low:g}, {self.high:g}{right}"

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else (int, float)):
            return False
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high) and value != math.inf

    def problems(self, name: str, value: Any, meaning: str = "") -> Iterator[str]:
        """What is wrong with a value: nothing, or one line.

        Args:
            name: What the user calls it.
            value: What the user gave.
            meaning: What the number says.
        """
        if not self.holds(value):
            yield f"{name} {value!r} must be {self}{meaning and f': {meaning}'}"

    def require(self, name: str, value: Any, meaning: str = "") -> None:
        """Check a value; arguments as of :meth:`problems`.

        Raises:
            ConfigError: It is no such number.
        """
        for problem in self.problems(name, value, meaning):
            raise ConfigError(problem)


SHARE = Limit(0, 1)
POSITIVE_SHARE = Limit(0, 1, with_low=False)
SHARE_BELOW_ONE = Limit(0, 1, with_high=False)
NOT_NEGATIVE = Limit(0)
POSITIVE = Limit(0, with_low=False)
COUNT = Limit(1, is_whole=True)
WHOLE = Limit(0, is_whole=True)


def limited(default: Any, limit: Limit) -> Any:
    """A field of a dataclass that `check_fields` checks; where its default is None, None is allowed."""
    return field(default=default, metadata={"limit": limit})


def one_of(default: str, choices: tuple[str, ...]) -> Any:
    """A field of a dataclass that holds one of some words; `check_fields` checks it."""
    return field(default=default, metadata={"choices": choices})


def field_problems(record: Any) -> Iterator[str]:
    """What is wrong with the fields of a dataclass that are `limited`, `one_of` some words, or true or false."""
    for one in fields(record):
        value = getattr(record, one.name)
        if isinstance(one.default, bool) and not isinstance(value, bool):
            yield f"{one.name} {value!r} must be true or false"
        if "choices" in one.metadata and value not in one.metadata["choices"]:
            yield f"{one.name} {value!r} must be one of {', '.join(one.metadata['choices'])}"
        if "limit" in one.metadata and not (value is None and one.default is None):
            yield from one.metadata["limit"].problems(one.name, value)


def check_fields(record: Any) -> None:
    """Check the fields of a dataclass that are `limited`, `one_of` some words, or true or false by default.

    Raises:
        ConfigError: Some are wrong; all of them are named.
    """
    problems = [*field_problems(record)]
    if problems:
        raise ConfigError("\n".join(problems))
