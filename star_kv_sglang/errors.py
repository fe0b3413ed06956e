"""What this package raises. Every message says what is wrong, why, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class StarKVError(Exception):
    """Base of this package's errors."""


class ConfigError(StarKVError, ValueError):
    """A value that a user gave is not valid."""


class ReferenceRefusedError(ConfigError):
    """A reference to an image is malformed, or this server takes none in this request."""


class UnknownImagesError(StarKVError, ValueError):
    """A request refers to images whose bytes must be sent.

    Args:
        digests: All of them, each once, as ``sha256:`` and 64 hexadecimal digits.
    """

    MOST_NAMED = 8
    """In the message; the answer to the client lists all."""

    def __init__(self, digests: Sequence[str]) -> None:
        self.digests = tuple(digests)
        more = len(self.digests) - self.MOST_NAMED
        super().__init__(
            f"{len(self.digests)} image(s) are not known here under this cache_salt and extra_key, with these options; "
            f"send their bytes: {', '.join(self.digests[: self.MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"
        )


class UnsupportedSetupError(StarKVError, ValueError):
    """The options, taken together, ask for something that does not work with a KV policy.

    Args:
        reasons: Every reason that was found, so that a user mends them in one go.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(
            f"--kv-policy cannot be used with this set-up ({len(self.reasons)} reason(s)):\n{lines}\n"
            "Change these options, or start with --kv-policy full (stock SGLang)."
        )


class SeamMovedError(StarKVError, RuntimeError):
    """SGLang is not the version that this package was written against, or a place that it extends has changed.

    Args:
        problems: One line for each seam that differs.
        supported: SGLang versions that work.
    """

    def __init__(self, problems: Sequence[str], supported: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(
            f"star-kv-sglang does not fit the installed SGLang:\n{lines}\n"
            f"Supported SGLang versions: {', '.join(supported)}. Install one of them, or start with --kv-policy full."
        )


class PageTableError(StarKVError, RuntimeError):
    """A row with holes would meet a page table that was not made from its holes; the step must not run.

    Args:
        problem: What is wrong.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}. Without a page table of its own a pruned row would be read at slot 0, so the server stops "
            "here. This is a fault of star-kv-sglang, or of an option of SGLang that it should have refused: please "
            "report it, and start with --kv-policy full meanwhile."
        )
