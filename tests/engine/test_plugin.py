"""SGLang logs and skips a plugin that raises; ours stops the process, with its reason as the last lines."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec

import pytest

from tests.engine.machine import process_environment
from tests.engine.preloaded import run_program

_LOAD = """
from sglang.srt.plugins import load_plugins
from star_kv_sglang.patches import activate
{fault}
load_plugins()
print("went on")
"""


def load_plugins(fault: str) -> subprocess.CompletedProcess[str]:
    """A process that SGLang starts: it loads its plugins, after ``fault`` has broken something."""
    return run_program(_LOAD.format(fault=fault), env={**process_environment(), "SGLANG_PLUGINS": "star_kv"})


@pytest.mark.slow
def test_flags_that_cannot_be_installed_stop_the_process() -> None:
    """Without them ``--kv-policy`` ends as "unrecognized arguments", which tells nobody what is wrong."""
    fault = "def broken(): raise TypeError('readonly attribute')\nactivate.install_flags = broken"
    answer = load_plugins(fault)
    assert answer.returncode == 1
    assert "went on" not in answer.stdout
    last = answer.stderr.splitlines()[-2:]
    assert last[0] == "star-kv-sglang could not be loaded into SGLang: TypeError: readonly attribute"
    assert "star-kv doctor" in last[1] and "SGLANG_PLUGINS" in last[1]


@pytest.mark.slow
def test_what_is_not_broken_goes_on() -> None:
    answer = load_plugins("")
    assert answer.returncode == 0, answer.stderr
    assert "went on" in answer.stdout


_CHECKS = """
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
from star_kv_sglang.patches import activate
load_plugins()
hooks = activate.request_hooks()
assert activate.active_hooks(hooks) == [], "nobody has asked for a policy"
{fault}
activate.install_request_checks()
activate.install_request_checks()
print(len(activate.active_hooks(hooks)), "of", len(hooks), "checks")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "HookRegistry.apply_hooks = lambda: None"], ids=["works", "skipped_by_sglang"])
def test_checks_of_requests_are_in_place_or_the_process_stops(fault: str) -> None:
    answer = run_program(_CHECKS.format(fault=fault), env={**process_environment(), "SGLANG_PLUGINS": "star_kv"})
    if not fault:
        # SGLang leaves the Responses API out where its library is not installed.
        num = 8 if find_spec("openai_harmony") else 7
        assert answer.stdout.endswith(f"{num} of {num} checks\n"), answer.stderr
        return
    assert answer.returncode == 1
    assert "SeamMovedError" in answer.stderr
    assert "OpenAIServingBase.handle_request was not applied" in answer.stderr
