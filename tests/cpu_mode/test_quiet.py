"""What SGLang repeats on a CPU is left out by name, and nothing else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from star_kv_sglang.cpu_mode import cpu_environment
from star_kv_sglang.cpu_mode.quiet import LOG_LINES, leave_out_log_lines


@pytest.mark.parametrize("name", sorted(LOG_LINES))
def test_only_the_named_lines_of_a_logger_are_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    caplog.set_level(logging.WARNING, logger=name)  # an engine of this process may have set another one
    before = list(logger.filters)
    try:
        leave_out_log_lines()
        leave_out_log_lines()
        assert len(logger.filters) <= len(before) + 1
        for line in LOG_LINES[name]:
            logger.warning("%s somewhere: libavutil.so is missing", line)
        logger.warning("something else")
    finally:
        logger.filters[:] = before
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_only_the_named_warnings_are_left_out_and_the_user_s_own_filters_stay() -> None:
    program = (
        "import warnings\n"
        "warnings.warn('Only CUDA, HIP and XPU support AWQ currently.')\n"
        "warnings.warn('Triton is not supported on current platform, roll back to CPU.')\n"
        "warnings.warn('of the user')\n"
        "warnings.warn('something else')\n"
    )
    theirs = {**os.environ, "PYTHONWARNINGS": "ignore:of the user"}
    environment = cpu_environment(cpu_environment(theirs))
    assert environment["PYTHONWARNINGS"].count("Only CUDA") == 1
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert [line for line in answer.stderr.splitlines() if "UserWarning" in line] == [
        "<string>:5: UserWarning: something else"
    ]
