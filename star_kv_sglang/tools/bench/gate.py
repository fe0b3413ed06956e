"""No number without a green test: results of the op tests, by file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Iterable

TESTS = Path(__file__).resolve().parents[2] / "tests" / "ops"


@dataclass(frozen=True)
class Verdict:
    """Tests of one file: how many passed, how many did not."""

    passed: int = 0
    failed: int = 0

    @property
    def green(self) -> bool:
        """Whether something ran and nothing failed."""
        return self.passed > 0 and self.failed == 0


def run_tests(files: Iterable[str]) -> dict[str, Verdict]:
    """Run test files of tests/ops and return their verdicts.

    Raises:
        FileNotFoundError: there is no checkout with tests around the package.
    """
    if not TESTS.is_dir():
        raise FileNotFoundError(f"{TESTS} does not exist: measurements need the tests; run them from a checkout")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        paths = [str(TESTS / name) for name in sorted(set(files))]
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", f"--junitxml={report}", *paths]
        subprocess.run(command, cwd=TESTS.parents[1], stdout=subprocess.DEVNULL, check=False)
        return read_report(report)


def read_report(path: Path) -> dict[str, Verdict]:
    """Verdict of every test file in a JUnit report; raises ValueError when it is not one."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path} is not a JUnit report of the op tests: {error}") from error
    verdicts: dict[str, Verdict] = {}
    for case in root.iter("testcase"):
        name = case.get("classname", "").rsplit(".", 1)[-1] + ".py"
        before = verdicts.get(name, Verdict())
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        verdicts[name] = Verdict(before.passed + (not bad), before.failed + bad)
    return verdicts
