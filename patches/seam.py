"""What a seam is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SeamKind(Enum):
    """How a place in SGLang is extended or used."""

    REGISTRY = "registry"  # SGLang's own registry takes our entry
    SUBCLASS = "subclass"  # a method that a subclass of ours overrides or relies on
    AROUND = "around"  # SGLang's hook registry wraps the function
    AFTER = "after"  # SGLang's hook registry calls us afterwards
    REPLACE = "replace"  # SGLang's hook registry exchanges a class for its subclass
    CALL = "call"  # a function or class of SGLang's that we call, or whose order of calls we rely on
    READ = "read"  # a field of SGLang's that we read or set
    FLAG = "flag"  # an argument of the server that a rule looks at


@dataclass(frozen=True)
class Seam:
    """One place.

    Attributes:
        target: Dotted path. A module named ``*`` stands for any file of its folder.
        kind: How it is extended or used.
        signature: Parameters without annotations, as ``inspect.signature`` prints them; None for what has none, or
            where only the name matters.
        why: What we need it for.
        upstream: File that holds it, below its package.
        remove_when: When the seam can go.
        hook: Name of the function in ``patches.hooks`` that SGLang's hook registry gets; None for the other kinds.
    """

    target: str
    kind: SeamKind
    signature: str | None
    why: str
    upstream: str
    remove_when: str
    hook: str | None = None

    @property
    def hooked(self) -> bool:
        """Whether SGLang's hook registry applies it."""
        return self.kind in (SeamKind.AROUND, SeamKind.AFTER, SeamKind.REPLACE)
