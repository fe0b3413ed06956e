"""The servers that are compared: the same SGLang with another policy, or without the plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from star_kv_sglang.tools.bench.serve.errors import ServeBenchError
from star_kv_sglang.tools.rollout.server import serving, terminable

STOCK: Final = "stock"
FULL: Final = "full"
STAR: Final = "star"
WINDOW: Final = "window"

CONTROL: Final = f"{STOCK} again"
"""Label of a second server of stock: its ratio to the first is what two equal servers differ by."""

_PLUGINS: Final = "SGLANG_PLUGINS"
_NO_PLUGIN: Final = "none"
"""A name that no plugin has: SGLang then loads none."""

_ENVIRONMENT: Final = {"SGLANG_VLM_CACHE_SIZE_MB": "1024"}
"""Of every server. SGLang's cache of vision embeddings holds five screenshots of 1920x1080 by default, so that the
vision tower would take a good part of the time in which histories are built. An exported value wins."""

GPU_ARGUMENTS: Final = (
    *("--attention-backend", "flashinfer"),
    *("--mm-attention-backend", "triton_attn"),
    *("--sampling-backend", "pytorch"),
    *("--mm-feature-transport", "cpu"),
)
"""The same for every policy, as the defaults differ between GPUs."""


@dataclass(frozen=True)
class Policy:
    """What a server runs.

    Attributes:
        name: ``stock`` (plugin not loaded), ``full`` (plugin loaded, nothing pruned), ``star`` or ``window``.
        budget: of ``star``; None for the others.
        again: a second server of ``stock``.
    """

    name: str
    budget: float | None = None
    again: bool = False

    @property
    def label(self) -> str:
        if self.again:
            return CONTROL
        return self.name if self.budget is None else f"{self.name} {self.budget:g}"

    @property
    def arguments(self) -> list[str]:
        """Flags of the server."""
        if self.name == STOCK:
            return []
        budget = [] if self.budget is None else ["--kv-budget", f"{self.budget:g}"]
        return ["--kv-policy", self.name, *budget]

    @property
    def plugins(self) -> str:
        """Value of SGLang's list of plugins to load."""
        return _NO_PLUGIN if self.name == STOCK else "star_kv"


def parse_policies(names: str, budgets: str) -> list[Policy]:
    """Policies of two comma-separated lists, in the order of the first; ``stock`` comes first and is always there.

    Args:
        names: ``stock``, ``stock again``, ``full``, ``window``, ``star 0.2``, or ``star`` for all budgets.
        budgets: of ``star``.

    Raises:
        ServeBenchError: a policy or a budget that does not exist.
    """
    policies = [Policy(STOCK)]
    for word in _words(names):
        if word == CONTROL:
            policies.append(Policy(STOCK, again=True))
            continue
        name, _, budget = word.partition(" ")
        if name not in (STOCK, FULL, WINDOW, STAR) or (budget and name != STAR):
            known = ", ".join((STOCK, CONTROL, FULL, WINDOW, STAR, f"{STAR} BUDGET"))
            raise ServeBenchError(f"--policies {word}: choose among {known}")
        if name == STAR:
            policies += [Policy(STAR, _budget(each)) for each in ([budget] if budget else _words(budgets))]
        else:
            policies.append(Policy(name))
    return list(dict.fromkeys(policies))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _budget(word: str) -> float:
    try:
        value = float(word)
    except ValueError as error:
        raise ServeBenchError(f"--budgets {word!r} is not a number") from error
    if not 0 < value <= 1:
        raise ServeBenchError(f"--budgets {word}: a budget is in (0, 1]")
    return value


@contextmanager
def policy_server(
    policy: Policy,
    arguments: Sequence[str],
    log_file: Path,
    *,
    port: int | None,
    timeout_s: float,
    on_wait: Callable[[float], None],
) -> Iterator[str]:
    """Run the server of a policy while the body runs.

    Yields:
        Its base URL.

    Raises:
        RolloutError: the server ended, or was not ready in time.
    """
    environment = {**_ENVIRONMENT, **os.environ, _PLUGINS: policy.plugins}
    flags = [*arguments, *policy.arguments]
    with serving(flags, log_file, port=port, timeout_s=timeout_s, on_wait=on_wait, environment=environment) as url:
        yield url


@contextmanager
def policy_servers(starting: Sequence[AbstractContextManager[str]]) -> Iterator[list[str]]:
    """Run several servers while the body runs; they start at the same time.

    Args:
        starting: one `policy_server` each.

    Yields:
        Their base URLs.

    Raises:
        RolloutError: one of them did not start; the others have ended then.
    """
    with terminable(), ExitStack() as running, ThreadPoolExecutor(len(starting)) as threads:
        started = [threads.submit(running.enter_context, server) for server in starting]
        yield [future.result() for future in started]
