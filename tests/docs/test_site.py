"""The documentation as a site builds strictly: no dead link or anchor, no page that the navigation lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_it(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index", "CHANGELOG", "CONTRIBUTING"} <= built


def test_the_home_page_is_the_readme_with_links_that_lead_somewhere(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "arXiv 2606.01790" in home
    assert 'href="policies.html' in home
    assert (site / "benchmarks" / "serve_h100.csv").is_file()
