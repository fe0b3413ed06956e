"""Reads rows of JSON files and checks their fields, so that every complaint names the file and the row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from star_kv_sglang.tools.eval.errors import DataError, MalformedRow

_T = TypeVar("_T")
_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        path: the file it stands in.
        place: where in the file, for messages.
        value: the row's object.
    """

    path: Path
    place: str
    value: dict[str, Any]

    def error(self, reason: str) -> MalformedRow:
        """A complaint about this row, to be raised."""
        return MalformedRow(self.path, self.place, reason)

    @overload
    def field(self, name: str, kind: type[_T]) -> _T: ...
    @overload
    def field(self, name: str, kind: type[_T], default: _T) -> _T: ...
    def field(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """A field of the given type; whole numbers pass for ``float``.

        Raises:
            MalformedRow: it is missing and has no default, or is of another type.
        """
        if name not in self.value:
            if default is not None:
                return default
            raise self.error(f"field '{name}' is missing; there are {', '.join(sorted(self.value)) or 'no fields'}")
        value = self.value[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.error(f"field '{name}' must be {_TYPE_NAMES.get(kind, kind.__name__)}, not {_short(value)}")
        return value

    def text_id(self, name: str) -> str:
        """An identifier that may be a string or a whole number.

        Raises:
            MalformedRow: it is missing or something else.
        """
        value = self.value.get(name)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.error(f"field '{name}' must be a string or a whole number, not {_short(value)}")
        return str(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A field that is a list of ``count`` numbers.

        Raises:
            MalformedRow: it is something else.
        """
        value = self.field(name, list)
        if len(value) != count or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
            raise self.error(f"field '{name}' must be {count} numbers, not {_short(value)}")
        return tuple(float(v) for v in value)

    def inner(self, name: str) -> Row:
        """A field that is an object, as a row of its own.

        Raises:
            MalformedRow: it is something else.
        """
        return Row(self.path, f"{self.place}, field '{name}'", self.field(name, dict))

    def items(self, name: str, noun: str) -> list[Row]:
        """A field that is a list of objects; ``noun`` names one of them in messages.

        Raises:
            MalformedRow: it is something else.
        """
        return [
            as_row(self.path, f"{self.place}, {noun} {index}", value)
            for index, value in enumerate(self.field(name, list))
        ]


def as_row(path: Path, place: str, value: object) -> Row:
    """A parsed value as a row.

    Raises:
        MalformedRow: it is no object.
    """
    if not isinstance(value, dict):
        raise MalformedRow(path, place, f"must be an object, not {_short(value)}")
    return Row(path, place, value)


def read_json(path: Path) -> Any:
    """A file's JSON.

    Raises:
        DataError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; point --data at the folder that holds the benchmark's files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is no JSON: {error}; download it again") from error


def read_rows(path: Path, problems: list[MalformedRow]) -> Iterator[Row]:
    """The rows of a ``.json`` file that holds a list, or of a ``.jsonl`` file; rows count from 1.

    Rows that are no JSON objects are added to ``problems`` and left out.

    Raises:
        DataError: the file cannot be read, or a ``.json`` file holds no list.
    """
    if path.suffix == ".jsonl":
        yield from _json_lines(path, problems)
        return
    values = read_json(path)
    if not isinstance(values, list):
        raise DataError(f"{path} must hold a list of rows, not {_short(values)}")
    yield from _rows(path, enumerate(values, start=1), problems)


def _json_lines(path: Path, problems: list[MalformedRow]) -> Iterator[Row]:
    try:
        # Not splitlines(): a JSON string may hold other line separators.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(MalformedRow(path, f"row {number}", f"is no JSON: {error}"))
            continue
        yield from _rows(path, [(number, value)], problems)


def _rows(path: Path, values: Iterable[tuple[int, object]], problems: list[MalformedRow]) -> Iterator[Row]:
    for number, value in values:
        try:
            yield as_row(path, f"row {number}", value)
        except MalformedRow as problem:
            problems.append(problem)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
