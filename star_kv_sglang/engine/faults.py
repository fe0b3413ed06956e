"""What goes wrong while a request is scored or pruned costs that request its pruning, and nobody else anything."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from star_kv_sglang.engine.stats import PolicyCounters

logger = logging.getLogger(__name__)


class HalfPrunedError(RuntimeError):
    """Slots were moved, and the tree does not say so: no request may go on with them."""


class DivergedError(RuntimeError):
    """Tensor parallel ranks have decided differently: no request may go on."""


class FaultLog:
    """Counts faults, and logs the first of each cause with its traceback.

    Args:
        counters: Where they are counted.

    Attributes:
        is_alone: No other rank does the same. One that does, and has met no fault, would wait for this one for ever.
    """

    def __init__(self, counters: PolicyCounters) -> None:
        self._counters = counters
        self.is_alone = True
        self._known: set[tuple[object, ...]] = set()

    @contextmanager
    def guard(self, step: str, consequence: str, *, decides: bool = True) -> Iterator[None]:
        """Survive an error inside of the block, which has changed nothing yet.

        Args:
            step: What is tried.
            consequence: What happens instead.
            decides: What is kept follows from it. Where not, or where all ranks meet the same fault, each goes on.

        Raises:
            HalfPrunedError: From inside of the block; nobody could go on after it.
            DivergedError: Likewise.
        """
        try:
            yield
        except (HalfPrunedError, DivergedError):
            raise
        except Exception as error:
            if decides and not self.is_alone:
                error.add_note(f"{step} failed on one of several tensor parallel ranks: the server cannot go on.")
                raise
            self._counters.num_pruner_faults += 1
            cause = (
                type(error),
                *((frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)),
            )
            if cause not in self._known:
                self._known.add(cause)
                logger.exception("%s failed: %s. Further faults of this cause are only counted.", step, consequence)


@contextmanager
def committing() -> Iterator[None]:
    """The block changes slots, nodes and rows together: an error in the middle of it must not be survived."""
    try:
        yield
    except Exception as error:
        raise HalfPrunedError(f"a prune broke off in the middle: {error}") from error
