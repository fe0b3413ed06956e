"""What every test runs under: a complete package, CPU mode, hypothesis profiles, a line about tests left out."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "nightly", max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_IN_A_BROWSER = ("browser", "view")
_OPT_IN_MARKERS = ("gpu", "nightly")
_left_out: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    """Check the layout and, on a machine without a GPU, switch CPU mode on before any test imports SGLang.

    In a checkout that is not installed half of the package lies beside it (`triton_ops`, `patches`).
    """
    if importlib.util.find_spec("star_kv_sglang") is None or importlib.util.find_spec("star_kv_sglang.patches") is None:
        raise pytest.UsageError(
            "star_kv_sglang is not complete on the import path. Install it (make install), or, without installation: "
            "python scripts/link_tree.py build/tree && PYTHONSAFEPATH=1 PYTHONPATH=build/tree python -m pytest"
        )
    from star_kv_sglang import cpu_mode

    if cpu_mode.is_gpu_present():
        _take_a_gpu(getattr(config, "workerinput", {}))
    else:
        cpu_mode.enable()
    results = os.environ.get("RESULTS_CSV")
    if results and not hasattr(config, "workerinput"):  # with xdist, in the process that hears of all tests
        from tests.results_csv import ResultsCsv

        config.pluginmanager.register(ResultsCsv(Path(results)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take long begin first; with xdist's ``--no-loadscope-reorder`` the short ones fill the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """An engine leaves its handlers of signals behind, and a process that is forked later would not end by SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGQUIT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _take_a_gpu(workerinput: dict[str, Any]) -> None:
    """Spread xdist's workers over the machine's GPUs, or over those that somebody has chosen."""
    from torch.cuda import device_count

    if workerinput:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = chosen.split(",") if chosen else [str(gpu) for gpu in range(device_count())]
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(workerinput["workerid"].removeprefix("gw")) % len(gpus)]


def _has_no_browser() -> bool:
    """A GPU machine runs tests of engines, and may have no more than these need; `make install` brings Playwright."""
    from star_kv_sglang import cpu_mode

    return cpu_mode.is_gpu_present() and importlib.util.find_spec("playwright") is None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what a browser is needed for, where there is none."""
    return True if collection_path.name in _IN_A_BROWSER and _has_no_browser() else None


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what the marker expression or the command line leaves out."""
    for item in items:
        _left_out.update([marker for marker in _OPT_IN_MARKERS if item.get_closest_marker(marker)] or ["other"])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With xdist, tell the process that prints the summary what was left out here."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All of xdist's processes leave the same tests out."""
    global _left_out
    _left_out |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what tests have measured, how many did not run, and how to run those that are asked for by marker."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"measured: {report.nodeid}: {name} {value}")
    if _has_no_browser():
        terminalreporter.write_line(f"left out: {', '.join(_IN_A_BROWSER)}: no Playwright on this machine", yellow=True)
    for reason, count in sorted(_left_out.items()):
        how = f"marked {reason}: run them with pytest -m {reason}" if reason in _OPT_IN_MARKERS else "by -m or -k"
        terminalreporter.write_line(f"left out: {count} tests {how}", yellow=True)
