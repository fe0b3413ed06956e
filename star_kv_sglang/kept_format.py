"""What ``kv_return_kept`` returns: which tokens each layer kept at each prune that an answer has seen, compactly.

One module writes and reads it, in the engine and in a trainer; it needs numpy only. ``docs/training.md`` describes the
format for other readers.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from star_kv_sglang.errors import StarKVError

VERSION = 1
KEPT = "kept"
"""Key of the record in the entry of an answer's last token."""

Bits = npt.NDArray[np.bool_]


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
    """

    start: int
    end: int
    after: int
    num_kept: int
    packed: bytes


def pack(kept: Bits, before: Bits) -> bytes:
    """Which of the tokens that were there each unit kept.

    Args:
        kept: [num_units, num_positions].
        before: Likewise, before the prune; as many in each unit.

    Returns:
        Deflated bits, unit after unit, in the order of position.
    """
    bits = np.packbits(kept[before]).tobytes()
    # Kept tokens are few and follow no pattern that repeats: codes by frequency alone are the fastest and as short.
    deflate = zlib.compressobj(level=1, method=zlib.DEFLATED, wbits=-15, strategy=zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(bits) + deflate.flush()


def unpack(packed: bytes, before: Bits) -> Bits:
    """Undo :func:`pack`.

    Raises:
        KeptFormatError: They are not the bits of these tokens.
    """
    num_bits = int(before.sum())
    try:
        bits = np.unpackbits(np.frombuffer(zlib.decompress(packed, wbits=-15), np.uint8), count=num_bits)
    except (zlib.error, ValueError) as error:
        raise KeptFormatError(f"the bits of a prune cannot be read: {error}") from error
    kept = np.zeros_like(before)
    kept[before] = bits.astype(np.bool_)
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
    return {
        "version": VERSION,
        "complete": True,
        "num_layers": num_layers,
        "units_per_layer": units_per_layer,
        "prompt_len": prompt_len,
        "length": length,
        "prunes": [[p.start, p.end, p.after, p.num_kept, len(p.packed)] for p in prunes],
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
        prunes: In the order in which they happened.
    """

    num_layers: int
    units_per_layer: int
    prompt_len: int
    length: int
    prunes: tuple[PruneMask, ...]

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
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise KeptFormatError(f"the record cannot be read: {error!r}") from error
        return cls(*sizes, prunes)


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
