"""What ``kv_return_kept`` returns: which tokens each layer kept at each prune that an answer has seen, compactly.

One module writes and reads it, in the engine and in a trainer; it needs numpy only. ``docs/training.md`` describes the
format for other readers.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from star_kv_sglang.errors import StarKVError

VERSION = 1
KEPT = "kept"
"""Key of the record in the entry of an answer's last token."""

Bits = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.integer[Any]]


class KeptFormatError(StarKVError):
    """What was returned cannot be read, or does not say all that an answer has seen."""


@dataclass(frozen=True)
class KeptPrune:
    """One prune of the positions [start, end) of a prompt.

    Attributes:
        start: First position that could be pruned.
        end: Position after the last.
        after: Queries at this position and later see what was kept only; those before it have seen everything.
        num_kept: Tokens that each unit kept; a unit is a layer, or a key head of a layer.
        packed: Of each unit, whether it kept each of the tokens that it had kept before, as :func:`pack` writes it.
        first_after: ``after`` as it was for the answer's first token; None where it is the same for all.
    """

    start: int
    end: int
    after: int
    num_kept: int
    packed: bytes
    first_after: int | None = None


def pack(kept: Indices, num_before: int) -> bytes:
    """Which of the tokens that were there each unit kept.

    Args:
        kept: [num_units, num_kept], indices among the tokens that the unit had, in the order of position.
        num_before: Tokens that each unit had.

    Returns:
        Deflated bits: for each token that was there, one of each unit. What layers agree in makes bytes that are alike.

    Raises:
        KeptFormatError: An index is no token's, or comes twice.
    """
    if kept.size and not 0 <= kept.min() <= kept.max() < num_before:
        raise KeptFormatError("a segment keeps a token that it did not have")
    bits = np.zeros((num_before, len(kept)), np.bool_)
    bits[kept, np.arange(len(kept))[:, None]] = True
    if np.count_nonzero(bits) != kept.size:
        raise KeptFormatError("a segment keeps a token twice")
    # Bytes differ in how often they come and repeat in no longer patterns: codes by frequency alone are the fastest.
    deflate = zlib.compressobj(level=1, method=zlib.DEFLATED, wbits=-15, strategy=zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(np.packbits(bits).tobytes()) + deflate.flush()


def unpack(packed: bytes, before: Bits) -> Bits:
    """Undo :func:`pack`.

    Args:
        packed: Deflated bits.
        before: [num_units, num_positions], which tokens there were, as many in each unit.

    Returns:
        [num_units, num_positions], which of them were kept.

    Raises:
        KeptFormatError: They are not the bits of these tokens.
    """
    num_units, num_before = len(before), int(before[0].sum())
    try:
        data = np.frombuffer(zlib.decompress(packed, wbits=-15), np.uint8)
    except zlib.error as error:
        raise KeptFormatError(f"the bits of a prune cannot be read: {error}") from error
    if len(data) != -(-num_units * num_before // 8):
        raise KeptFormatError(f"a prune has {len(data)} bytes for {num_units} times {num_before} tokens")
    bits = np.unpackbits(data, count=num_units * num_before).astype(np.bool_).reshape(num_before, num_units)
    kept = np.zeros_like(before)
    kept[before] = bits.T.reshape(-1)
    return kept


def encode(
    prunes: Sequence[KeptPrune], *, num_layers: int, units_per_layer: int, prompt_len: int, length: int
) -> dict[str, Any]:
    """The record of an answer all of whose prunes are known.

    Args:
        prunes: What its tokens have seen; those of the same positions in the order in which they happened.
        num_layers: Layers of the model.
        units_per_layer: 1, or the key heads that choose for themselves.
        prompt_len: Tokens of the prompt.
        length: Tokens of prompt and answer.
    """
    firsts = [p.first_after for p in prunes]
    return {
        "version": VERSION,
        "complete": True,
        "num_layers": num_layers,
        "units_per_layer": units_per_layer,
        "prompt_len": prompt_len,
        "length": length,
        "prunes": [[p.start, p.end, p.after, p.num_kept, len(p.packed)] for p in prunes],
        "first_after": None if None in firsts else firsts or None,
        "data": base64.b64encode(b"".join(p.packed for p in prunes)).decode("ascii"),
    }


def incomplete(reason: str) -> dict[str, Any]:
    """The record of an answer of which not all is known."""
    return {"version": VERSION, "complete": False, "reason": reason}


@dataclass(frozen=True)
class PruneMask:
    """One prune, read.

    Attributes:
        start: First position that could be pruned.
        end: Position after the last.
        after: Queries at this position and later see what was kept only.
        kept: [num_layers, units_per_layer, end - start].
    """

    start: int
    end: int
    after: int
    kept: Bits


@dataclass(frozen=True)
class KeptRecord:
    """What the tokens of an answer could attend to.

    Attributes:
        num_layers: Layers of the model.
        units_per_layer: 1, or the key heads of a layer that choose for themselves.
        prompt_len: Tokens of the prompt.
        length: Tokens of prompt and answer.
        prunes: Those of the same positions are in the order in which they happened.
        first: The same for the answer's first token, where that was made of other tokens than the later ones found: the
            tree had the prompt's end already, computed when other prunes had been seen. None where it is not so.
    """

    num_layers: int
    units_per_layer: int
    prompt_len: int
    length: int
    prunes: tuple[PruneMask, ...]
    first: tuple[PruneMask, ...] | None = None

    def of_first_token(self) -> KeptRecord:
        """What the answer's first token was made of."""
        prunes = self.prunes if self.first is None else self.first
        return KeptRecord(self.num_layers, self.units_per_layer, self.prompt_len, self.prompt_len + 1, prunes)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> KeptRecord:
        """Read a record.

        Raises:
            KeptFormatError: It is of another version, incomplete, or damaged.
        """
        if record.get("version") != VERSION:
            raise KeptFormatError(
                f"the record has version {record.get('version')!r}, and this reads {VERSION}: "
                "install the star-kv-sglang of the server"
            )
        if not record.get("complete"):
            raise KeptFormatError(f"the record is not complete: {record.get('reason')}")
        try:
            data = base64.b64decode(record["data"], validate=True)
            num_layers, units = int(record["num_layers"]), int(record["units_per_layer"])
            rows = [tuple(map(int, row)) for row in record["prunes"]]
            sizes = (num_layers, units, int(record["prompt_len"]), int(record["length"]))
            prunes = tuple(_read_prunes(rows, data, num_layers, units))
            firsts = record.get("first_after")
            first = (
                None if firsts is None else tuple(replace(p, after=int(a)) for p, a in zip(prunes, firsts, strict=True))
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise KeptFormatError(f"the record cannot be read: {error!r}") from error
        return cls(*sizes, prunes, first)


def _read_prunes(rows: Sequence[tuple[int, ...]], data: bytes, num_layers: int, units: int) -> list[PruneMask]:
    ends = list(accumulate((row[4] for row in rows), initial=0))
    if ends[-1] != len(data):
        raise KeptFormatError(f"the record has {len(data)} bytes of data and speaks of {ends[-1]}")
    masks, newest = [], dict[tuple[int, int], Bits]()
    for (start, end, after, num_kept, _), (first, last) in zip(rows, pairwise(ends), strict=True):
        before = newest.get((start, end))
        if before is None:
            before = np.ones((num_layers * units, end - start), np.bool_)
        kept = newest[start, end] = unpack(data[first:last], before)
        if (kept.sum(axis=1) != num_kept).any():
            raise KeptFormatError(f"the prune of positions {start} to {end} does not keep {num_kept} tokens everywhere")
        masks.append(PruneMask(start, end, after, kept.reshape(num_layers, units, end - start)))
    return masks
