"""Hooks of mkdocs: the site shows files that lie beside docs/ as well, at the addresses that the pages' links name.

In the repository `docs/performance.md` links to `../benchmarks/serve_h100.csv`, and README.md to `docs/performance.md`.
The site has docs/ as its root, so that both links are rewritten, and the files they name become part of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BESIDE = re.compile(r"(\]\(|src=\")\.\./([\w./-]+)")
"""A link of a page to a file of the repository that is not in docs/."""
FROM_ROOT = re.compile(r"(\]\(|src=\")(?:docs/)?([\w./-]+)")
"""A link of a page that lies in the repository's root."""
PAGES_OF_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")
HOME = "README.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the home page, the pages of the repository's root, and every file that a page links to."""
    from mkdocs.structure.files import File

    pages = {page.src_uri: Path(page.abs_src_path).read_text(encoding="utf-8") for page in files.documentation_pages()}
    for name in (HOME, *PAGES_OF_ROOT):
        uri = "index.md" if name == HOME else name
        pages[uri] = text = _from_root((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, uri, content=text))
    linked = {match[2] for text in pages.values() for match in BESIDE.finditer(text)} - set(PAGES_OF_ROOT) - {HOME}
    for name in sorted(linked):
        path = ROOT / name
        if path.is_file() and files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ are links within the site."""
    return BESIDE.sub(lambda match: match[1] + ("index.md" if match[2] == HOME else match[2]), markdown)


def _from_root(text: str) -> str:
    return FROM_ROOT.sub(lambda match: match[0] if match[2].startswith("http") else match[1] + match[2], text)
