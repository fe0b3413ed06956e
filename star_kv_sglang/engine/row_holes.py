"""How many holes each row of SGLang's table has, known on the host, so that no step waits for the device."""

from __future__ import annotations

from collections.abc import Iterable

from star_kv_sglang.errors import PageTableError


class RowHoles:
    """Holes by row.

    A row is told when its request is planned and when it is pruned. A row that nobody has told is an error and not a
    row without holes: its holes would be read as slot 0. What was told stays until the row gets another request: a
    request may end, and its row be given back, with its next step already prepared.
    """

    def __init__(self) -> None:
        self._holes: dict[int, int] = {}

    def tell(self, row: int, num_holes: int) -> None:
        """The row of a prompt that is about to be computed."""
        self._holes[row] = num_holes

    def add(self, row: int, num_holes: int) -> None:
        """Tokens of a running request were pruned."""
        self._holes[row] += num_holes

    def of(self, rows: Iterable[int]) -> list[int]:
        """Holes of each row.

        Raises:
            PageTableError: Nobody has planned a row.
        """
        try:
            return [self._holes[row] for row in rows]
        except KeyError as error:
            raise PageTableError(
                f"row {error.args[0]} of SGLang's table runs, but no prompt was planned for it: "
                "whether it has holes is not known"
            ) from error
