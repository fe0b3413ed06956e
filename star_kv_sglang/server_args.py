"""SGLang's ServerArgs with the policy's flags.

A subclass of SGLang's Struct with annotated fields: the command line, ``from_cli_args``, keyword arguments of
``sglang.Engine``, the trip to the scheduler process and ``/server_info`` then work by themselves.

The record keeps what the user asked for. What SGLang makes of it is declared beside it and read through
``resolving_view``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, Optional

from sglang.srt.arg_groups.arg_utils import Arg
from sglang.srt.arg_groups.overrides import declare_resolution, is_attention_backend_not_set, resolving_view
from sglang.srt.server_args import ServerArgs

from star_kv_sglang import compat
from star_kv_sglang.config import FULL, POLICIES, PolicyConfig
from star_kv_sglang.errors import UnsupportedSetupError
from star_kv_sglang.policies import REFUSED

logger = logging.getLogger(__name__)

RADIX_CACHE_BACKEND = "star_kv"
"""Name under which the tree is registered with SGLang."""

_inherited: PolicyConfig | None = None
"""The configuration that came with this process's arguments; None in the process that parsed the command line."""


def inherited_config() -> PolicyConfig | None:
    """The policy that this process was started with, when it is a child that SGLang spawned with its arguments."""
    return _inherited


_with_a_policy: list[Callable[[], None]] = []


def call_with_a_policy(call: Callable[[], None]) -> None:
    """Call this whenever arguments of this process have been resolved that ask for a policy."""
    _with_a_policy.append(call)


class StarServerArgs(ServerArgs):
    """ServerArgs plus ``--kv-policy`` and its companions."""

    # Optional[...] and not `| None`: SGLang's flag builder reads typing.Optional only.
    kv_policy: Annotated[
        str,
        Arg(
            help=f"KV-cache policy. 'full' is stock SGLang; {', '.join(REFUSED)}: says why it is not offered.",
            choices=[*POLICIES, *REFUSED],
        ),
    ] = FULL
    kv_budget: Annotated[
        Optional[float],  # noqa: UP045
        Arg(help="Share of a branch's private screenshot tokens to keep after each prefill, in (0, 1]. Default 0.2."),
    ] = None
    kv_token_budget: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help="Most tokens that the private nodes of all branches may hold together."),
    ] = None
    kv_observation_window: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help="How many of the prompt's last queries score the history. Default 8."),
    ] = None
    kv_policy_config: Annotated[
        Optional[str],  # noqa: UP045
        Arg(help="JSON object, or a file that holds one, with the scorer's parameters; unknown keys are refused."),
    ] = None

    def policy_config(self) -> PolicyConfig:
        """The validated configuration of these flags."""
        return PolicyConfig.from_flags(
            policy=self.kv_policy,
            budget=self.kv_budget,
            token_budget=self.kv_token_budget,
            observation_window=self.kv_observation_window,
            policy_config=self.kv_policy_config,
        )

    def resolve_once(self) -> None:
        """Let SGLang resolve its arguments, and make sure that the policy can run with what comes out.

        Raises:
            ConfigError: One of our values is invalid (before anything is loaded).
            UnsupportedSetupError: The set-up cannot run with a policy; all reasons at once, before weights load.
            SeamMovedError: SGLang is not the version that the policy extends, or has not taken a hook.
        """
        if getattr(self, "_resolution_finished", False):
            return
        config = self.policy_config()
        if config.active:
            compat.require_supported_sglang()
            early = compat.reasons_from_flags(resolving_view(self))
            if early:
                raise UnsupportedSetupError(early)
            self._choose_backends()
        super().resolve_once()
        if config.active:
            reasons = compat.reasons_after_resolution(self)
            if reasons:
                raise UnsupportedSetupError(reasons)
            for call in _with_a_policy:
                call()

    def _choose_backends(self) -> None:
        """Select our tree, and an attention backend that understands holes where SGLang would choose another."""
        chosen = {"radix_cache_backend": RADIX_CACHE_BACKEND}
        if is_attention_backend_not_set(self) and self.device != "cpu" and compat.gpu_is_present():
            chosen["attention_backend"] = "flashinfer"
            logger.warning(
                "--kv-policy %s: attention backend set to flashinfer (page tables with holes need it)", self.kv_policy
            )
        declare_resolution(self, f"--kv-policy {self.kv_policy}", **chosen)

    def __reduce__(self) -> tuple[Callable[..., StarServerArgs], tuple[Any, ...]]:
        """Pickle as SGLang does, for a process that learns its policy when it reads the arguments."""
        return _restore, super().__reduce__()


def _restore(rebuild: Callable[..., StarServerArgs], arguments: tuple[Any, ...]) -> StarServerArgs:
    """Rebuild a pickled record; a spawned process learns its policy here, before SGLang loads plugins in it."""
    global _inherited
    record = rebuild(*arguments)
    _inherited = record.policy_config()
    return record
