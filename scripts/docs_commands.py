"""Commands of the documentation, and how each of them is known to work.

Every block of `bash`, `console` or `python` in README.md and docs/ has a comment on the line before its fence:

    <!-- start -->                  starts the server; the newcomer's path runs it first
    <!-- watch -->                  shows a page for as long as it runs, of that server
    <!-- cpu -->                    runs against that server (scripts/newcomer.py, and its test)
    <!-- cpu: FILE -->              FILE, a test of every run, runs it
    <!-- nightly: ARGUMENTS -->     `make test-nightly` runs it with these arguments behind it, which make it short
    <!-- gpu: FILE, GPU, SGLang X, DATE -->   the newest rows of benchmarks/FILE are of its last run
    <!-- not run: REASON -->        nobody here can: it needs weights, data, or a machine that is not there
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LANGUAGES = ("bash", "console", "python")
KINDS = ("start", "watch", "cpu", "nightly", "gpu", "not run")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (?P<kind>[a-z ]+?)(?:: (?P<rest>.*?))? -->\n *\Z")


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        page: Its file, from the repository's root.
        line: Of its fence.
        language: One of :data:`LANGUAGES`.
        text: Its lines, without prompts.
        kind: One of :data:`KINDS`; None where it has no mark.
        rest: What the mark says behind the kind.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str | None
    rest: str

    @property
    def place(self) -> str:
        """As an error names it."""
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Pages whose commands are known to work."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Blocks of a page in one of :data:`LANGUAGES`."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match["language"] not in LANGUAGES:
            continue
        before = text[: match.start()]
        mark = MARK.search(before)
        lines = (line.removeprefix(match["indent"]).removeprefix("$ ") for line in match["text"].splitlines())
        yield Block(
            str(page.relative_to(ROOT)),
            before.count("\n") + 1,
            match["language"],
            "\n".join(lines),
            mark["kind"] if mark else None,
            (mark["rest"] or "") if mark else "",
        )


def all_blocks() -> list[Block]:
    """Blocks of all pages, README's first."""
    return [block for page in pages() for block in blocks(page)]
