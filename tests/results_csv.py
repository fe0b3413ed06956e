"""Results of a test run as rows of a CSV, each written when it exists: ``RESULTS_CSV=FILE pytest``.

So a run that is ended by a time limit still says what passed. What failed goes to ``FILE.failed.txt`` at once.
"""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.serve.machine import describe


class ResultsCsv:
    """Writes a row for each test that ran.

    Args:
        path: The file; an older one is replaced.
    """

    def __init__(self, path: Path) -> None:
        machine = asdict(describe(""))
        del machine["model"]
        self._machine = machine
        self._path = path
        self._failed = path.with_name(f"{path.name}.failed.txt")
        self._failed.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*machine, "test", "outcome", "seconds"])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's call, or its set-up or end where these say more."""
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*self._machine.values(), report.nodeid, outcome, f"{report.duration:.1f}"])
        if report.failed:
            sections = [report.longreprtext, *(f"--- {name}\n{text[-8000:]}" for name, text in report.sections)]
            with self._failed.open("a", encoding="utf-8") as file:
                file.write("\n".join([f"=== {report.nodeid} ({report.when})", *sections, ""]))
