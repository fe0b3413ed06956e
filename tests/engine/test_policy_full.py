"""Installed, but ``--kv-policy full``: nothing of SGLang is touched."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang import cpu_mode
from tests.engine.call_log import logged_calls
from tests.engine.conversation import Chat, turn
from tests.engine.harness import running_engine
from tests.engine.machine import engine_arguments
from tests.engine.preloaded import preloaded_processes

pytestmark = pytest.mark.slow


def tell_what_is_active(server_args: Any, answer: Connection) -> None:
    """Runs in a process that SGLang could have started: loads the plugins and looks at what they did."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.mem_cache.registry import registered_radix_cache_backends
    from sglang.srt.plugins import load_plugins

    from star_kv_sglang.patches import activate

    load_plugins()
    answer.send(
        (
            server_args.kv_policy,
            activate.active_hooks(),
            list(registered_radix_cache_backends()),
            ATTENTION_BACKENDS["torch_native"].__module__,
        )
    )


@pytest.mark.parametrize(
    ("policy", "hooked"), [("full", False), ("star", True)], ids=["full_is_inert", "star_is_not_so_the_test_can_fail"]
)
def test_hooks_of_a_process_that_inherited_its_arguments(
    checkpoint: Callable[[str], Path], policy: str, hooked: bool
) -> None:
    from star_kv_sglang.server_args import RADIX_CACHE_BACKEND, StarServerArgs

    flags: dict[str, Any] = engine_arguments(exact=True, model_path=str(checkpoint("qwen2_5_vl")), kv_policy=policy)
    arguments = StarServerArgs(**flags)
    arguments.resolve_once()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell_what_is_active, args=(arguments, sender))
    with nullcontext() if cpu_mode.is_gpu_present() else preloaded_processes():
        process.start()
    sender.close()
    inherited, hooks, trees, attention = receiver.recv()
    process.join(60)
    assert process.exitcode == 0
    assert inherited == policy
    assert bool(hooks) == hooked
    assert (RADIX_CACHE_BACKEND in trees) == hooked
    assert attention.startswith("star_kv_sglang") == hooked


def take_two_turns(model: Path, policy: str, log: Path, answer: Connection) -> None:
    """Runs in a process that no engine was in before: which code of ours was called at the start, and by requests."""
    started = running_engine(model, preloaded=False, kv_policy=policy)
    with logged_calls(log), started as engine:
        at_start = log.read_text(encoding="utf-8").splitlines()
        chat = turn(Chat(), 0)
        first = engine.answer(chat, 4)
        engine.answer(turn(chat.reply(first.text), 1), 4)
        calls = log.read_text(encoding="utf-8").splitlines()[len(at_start) :]
    answer.send((at_start, calls))


# The second shows that the first could fail; where nobody listens that one fails too.
@pytest.mark.parametrize("policy", ["full", pytest.param("star", marks=pytest.mark.nightly)])
def test_requests_call_code_of_ours_with_a_policy_only(
    checkpoint: Callable[[str], Path], tmp_path: Path, policy: str
) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=take_two_turns, args=(checkpoint("qwen2_5_vl"), policy, tmp_path / "calls", sender)
    )
    process.start()
    sender.close()
    at_start, calls = receiver.recv()
    process.join(60)
    listening = {line.split()[0] for line in at_start if line.endswith(" listens")}
    assert len(listening) >= 2, "the process that takes requests, and the scheduler's"
    if policy == "full":
        assert calls == []
    else:
        assert any("engine.policy_engine" in call for call in calls)
