"""SGLang's ServerArgs with the policy's flags.

A subclass of SGLang's Struct with annotated fields: the command line, ``from_cli_args``, keyword arguments of
``sglang.Engine``, the trip to the scheduler process and ``/server_info`` then work by themselves.

The record keeps what the user asked for. What SGLang makes of it is declared beside it and read through
``resolving_view``.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Optional

from sglang.srt.arg_groups.arg_utils import Arg
from sglang.srt.arg_groups.overrides import (
    declare_resolution,
    is_attention_backend_not_set,
    model_config_of,
    resolving_view,
)
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import get_device_memory_capacity

from star_kv_sglang import compat
from star_kv_sglang.config import FULL, NEVER, PolicyConfig
from star_kv_sglang.errors import ConfigError, StarKVError, UnsupportedSetupError
from star_kv_sglang.flags import HELP
from star_kv_sglang.images.embeddings import embedding_cache_mb
from star_kv_sglang.introspection.protocol import OFF
from star_kv_sglang.limits import WHOLE

logger = logging.getLogger(__name__)

RADIX_CACHE_BACKEND = "star_kv"
"""Name under which the tree is registered with SGLang."""
IMAGE_CACHE_SHARE = 8
"""The cache of processed screenshots takes this part of the machine's memory."""
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Memory of the container, where there is one: what is taken above it ends the server."""
MOST_IMAGE_CACHE_MB = 16_384
"""But no more: a screenshot of 1920 x 1080 is 25 MB in half precision, so that 640 of them fit."""

_inherited: PolicyConfig | None = None
"""The configuration that came with this process's arguments; None in the process that parsed the command line."""


def inherited_config() -> PolicyConfig | None:
    """The policy that this process was started with, when it is a child that SGLang spawned with its arguments."""
    return _inherited


_with_a_policy: list[Callable[[], None]] = []


def call_with_a_policy(call: Callable[[], None]) -> None:
    """Call this whenever arguments of this process have been resolved that ask for a policy."""
    _with_a_policy.append(call)


_with_an_image_cache: list[Callable[[], None]] = []


def call_with_an_image_cache(call: Callable[[], None]) -> None:
    """Call this whenever arguments of this process have been resolved that keep processed screenshots."""
    _with_an_image_cache.append(call)


_with_introspection: list[Callable[[], None]] = []


def call_with_introspection(call: Callable[[], None]) -> None:
    """Call this whenever arguments of this process have been resolved that let somebody look at the tree."""
    _with_introspection.append(call)


def default_image_cache_mb() -> int:
    """MiB of processed screenshots that are kept where nobody says how many."""
    memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINER_LIMITS:
        # No such file, or the word "max": nothing is limited there.
        with suppress(OSError, ValueError):
            memory.append(int(file.read_text(encoding="ascii")))
    return min(MOST_IMAGE_CACHE_MB, min(memory) // 2**20 // IMAGE_CACHE_SHARE)


_set_here: dict[str, str] = {}
"""Variables of the environment that arguments of this process have set, for the processes of their engine."""


def set_for_this_engine(variable: Any, value: Any) -> None:
    """Set a variable of SGLang's environment, which the processes of this engine inherit, and those of no other.

    Args:
        variable: Of ``sglang.srt.environ.envs``.
        value: Its value.
    """
    variable.set(value)
    _set_here[variable.name] = os.environ[variable.name]


def _forget_what_was_set_before() -> None:
    """A second engine of this process is not to have what the first one chose."""
    for name, value in _set_here.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _set_here.clear()


def embedding_cache_of(record: ServerArgs) -> int | None:
    """MiB of the vision tower's embeddings that follow from the branches in flight; None on a CPU, or without a tower.

    SGLang keeps five screenshots of a 7B model, or none for models that it takes to see each picture once.

    Args:
        record: Resolved arguments.
    """
    config = model_config_of(record)
    vision = getattr(config.hf_config, "vision_config", None)
    memory_mb = get_device_memory_capacity(record.device) if compat.gpu_is_present() else None
    # Where outputs do not depend on batches, SGLang keeps none: which screenshots are encoded together would show.
    if not memory_mb or vision is None or resolving_view(record).enable_deterministic_inference:
        return None
    layers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    branches = resolving_view(record).max_running_requests
    return embedding_cache_mb(
        config.hidden_size * layers, config.dtype.itemsize, branches=branches, memory_mb=memory_mb
    )


class StarServerArgs(ServerArgs):
    """ServerArgs plus ``--kv-policy`` and its companions."""

    # Optional[...] and not `| None`: SGLang's flag builder reads typing.Optional only.
    kv_policy: Annotated[
        str,
        # No choices: argparse would print SGLang's 2,000 lines of usage in front of a wrong one.
        Arg(help=HELP["kv_policy"]),
    ] = FULL
    kv_budget: Annotated[
        Optional[float],  # noqa: UP045
        Arg(help=HELP["kv_budget"]),
    ] = None
    kv_token_budget: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help=HELP["kv_token_budget"]),
    ] = None
    kv_image_window: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help=HELP["kv_image_window"]),
    ] = None
    kv_recognise_windows: Annotated[
        str,
        Arg(help=HELP["kv_recognise_windows"]),
    ] = NEVER
    kv_window_placeholder: Annotated[
        Optional[str],  # noqa: UP045
        Arg(help=HELP["kv_window_placeholder"]),
    ] = None
    kv_observation_window: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help=HELP["kv_observation_window"]),
    ] = None
    kv_policy_config: Annotated[
        Optional[str],  # noqa: UP045
        Arg(help=HELP["kv_policy_config"]),
    ] = None
    kv_image_cache_mb: Annotated[
        Optional[int],  # noqa: UP045
        Arg(help=HELP["kv_image_cache_mb"]),
    ] = None
    kv_introspection: Annotated[
        str,
        Arg(help=HELP["kv_introspection"]),
    ] = OFF

    def policy_config(self) -> PolicyConfig:
        """The validated configuration of these flags."""
        return PolicyConfig.from_flags(
            policy=self.kv_policy,
            budget=self.kv_budget,
            token_budget=self.kv_token_budget,
            observation_window=self.kv_observation_window,
            image_window=self.kv_image_window,
            recognise_windows=self.kv_recognise_windows,
            window_placeholder=self.kv_window_placeholder,
            policy_config=self.kv_policy_config,
            introspection=self.kv_introspection,
        )

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> StarServerArgs:
        """Read the command line; whoever wrote it is told what is wrong with it without a traceback."""
        record: StarServerArgs = super().from_cli_args(args)
        record._from_command_line = True
        return record

    def resolve_once(self) -> None:
        """Let SGLang resolve its arguments, and make sure that the policy can run with what comes out.

        Raises:
            SystemExit: Any of the following, where the arguments are those of a command line; with its message.
            ConfigError: One of our values is invalid (before anything is loaded).
            UnsupportedSetupError: The set-up cannot run with a policy; all reasons at once, before weights load.
            SeamMovedError: SGLang is not the version that the policy extends, or has not taken a hook.
        """
        if getattr(self, "_resolution_finished", False):
            return
        try:
            self._resolve()
        except StarKVError as error:
            if not getattr(self, "_from_command_line", False):
                raise
            # Written when the process ends, behind what SGLang logs of its end.
            raise SystemExit(f"error: {error}") from None

    def _resolve(self) -> None:
        config = self.policy_config()
        if config.active or self.kv_image_cache_mb is not None:
            compat.require_supported_sglang()
        self._size_image_cache(with_a_policy=config.active)
        _forget_what_was_set_before()
        is_sized = envs.SGLANG_VLM_CACHE_SIZE_MB.is_set()
        if config.active:
            self._resolve_with_a_policy()
        else:
            super().resolve_once()
        if not is_sized and envs.SGLANG_VLM_CACHE_SIZE_MB.is_set():
            # SGLang's own choice for this model. The next engine of this process must not take it for its user's.
            name = envs.SGLANG_VLM_CACHE_SIZE_MB.name
            _set_here[name] = os.environ[name]
        if self._keeps_images(with_a_policy=config.active):
            size = None if is_sized else embedding_cache_of(self)
            if size is not None:
                set_for_this_engine(envs.SGLANG_VLM_CACHE_SIZE_MB, size)
            for call in _with_an_image_cache:
                call()

    def _resolve_with_a_policy(self) -> None:
        early = compat.reasons_before_resolution(resolving_view(self))
        self._choose_backends()
        try:
            super().resolve_once()
        except Exception:
            # SGLang may be unable to go on with what is refused anyway.
            if early:
                raise UnsupportedSetupError(early) from None
            raise
        reasons = list(dict.fromkeys([*early, *compat.reasons_after_resolution(self)]))
        if self.kv_recognise_windows != NEVER:
            reasons += compat.reasons_against_recognition(self)
        if resolving_view(self).tp_size > 1 and self.policy_config().needs_one_rank:
            reasons.append(
                f"--kv-policy {self.kv_policy} with tensor parallelism (--tp-size): it reads keys or values, or keeps "
                "other tokens for each key head, or merges what it drops, and a rank has some of them only; use "
                "another policy, or 1"
            )
        if resolving_view(self).kv_cache_dtype == "fp8_e4m3" and self.policy_config().merges:
            reasons.append(
                f"--kv-policy {self.kv_policy} merges what it drops, and --kv-cache-dtype fp8_e4m3: means of numbers "
                'in 8 bits were never verified; use auto, or add {"merge": "none"} to --kv-policy-config'
            )
        if self.kv_introspection != OFF:
            reasons += compat.reasons_against_introspection(resolving_view(self))
        if reasons:
            raise UnsupportedSetupError(reasons)
        for call in (*_with_a_policy, *(_with_introspection if self.kv_introspection != OFF else ())):
            call()

    def _keeps_images(self, *, with_a_policy: bool) -> bool:
        """Whether processed screenshots are kept in shared memory."""
        asked = with_a_policy if self.kv_image_cache_mb is None else self.kv_image_cache_mb > 0
        return asked and bool(resolving_view(self).mm_preprocess_cache_size_mb)

    def _size_image_cache(self, *, with_a_policy: bool) -> None:
        """Give SGLang's cache of processed images its size, where nobody else did.

        Raises:
            ConfigError: Its size was given twice, or is negative.
        """
        wanted, given = self.kv_image_cache_mb, resolving_view(self).mm_preprocess_cache_size_mb
        if wanted is not None and given is not None:
            raise ConfigError(
                f"--kv-image-cache-mb {wanted} and --mm-preprocess-cache-size-mb {given} size the same cache; give one"
            )
        if wanted is not None:
            WHOLE.require("--kv-image-cache-mb", wanted, "MiB, 0 turns the cache off")
        if wanted is None and given is None and with_a_policy:
            wanted = default_image_cache_mb()
        if wanted is not None:
            declare_resolution(self, "--kv-image-cache-mb", mm_preprocess_cache_size_mb=wanted)

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
