"""Check, apply and verify the seams. The only user of SGLang's hook registry."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from star_kv_sglang.errors import SeamMovedError, UnsupportedSetupError
from star_kv_sglang.patches import factories, hooks, introspection_routes
from star_kv_sglang.patches.manifest import FLAGS, HOOKS, IMAGE_HOOKS, PROGRAM_HOOKS, REFERENCE_HOOKS, REQUEST_HOOKS
from star_kv_sglang.patches.seam import Seam, SeamKind


def install_flags() -> None:
    """Give SGLang's arguments our flags; the one thing that happens with ``--kv-policy full`` too.

    Arguments that ask for a policy put the checks of requests in place, as the process that reads them answers clients.
    """
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from star_kv_sglang.server_args import (
        StarServerArgs,
        call_with_a_policy,
        call_with_an_image_cache,
        call_with_introspection,
    )

    call_with_a_policy(install_request_checks)
    call_with_a_policy(_name_http_app)
    call_with_an_image_cache(install_image_sharing)
    call_with_introspection(introspection_routes.add_routes)
    HookRegistry.register(FLAGS.target, StarServerArgs, HookType.REPLACE)
    # Engine binds the class when its module is imported, before hooks apply.
    Engine.server_args_class = StarServerArgs


def activate() -> None:
    """Register our tree, attention backends and hooks; SGLang applies the hooks when all plugins are loaded.

    Raises:
        SeamMovedError: SGLang has moved.
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.mem_cache.registry import register_radix_cache_backend

    from star_kv_sglang import compat
    from star_kv_sglang.server_args import RADIX_CACHE_BACKEND

    compat.require_supported_sglang()
    register_radix_cache_backend(RADIX_CACHE_BACKEND, factories.build_tree)
    ATTENTION_BACKENDS["torch_native"] = factories.build_torch_native
    ATTENTION_BACKENDS["flashinfer"] = factories.build_flashinfer
    _register(HOOKS)


def install_request_checks() -> None:
    """Put the checks of requests in place in a process that answers clients; once is enough.

    Raises:
        SeamMovedError: SGLang did not take one.
    """
    _install_late(request_hooks())
    # Without an image cache too, to say so.
    _install_late(REFERENCE_HOOKS)


def request_hooks() -> tuple[Seam, ...]:
    """The checks of the APIs that this process has: SGLang leaves one out whose libraries are not installed."""
    return tuple(seam for seam in REQUEST_HOOKS if _is_there(seam))


def _is_there(seam: Seam) -> bool:
    """Whether the module of a seam can be imported here; whether it has what the seam names is checked elsewhere."""
    module = "sglang." + seam.upstream.removesuffix(".py").replace("/", ".")
    try:
        import_module(module)
    except Exception:  # whatever it is, SGLang goes on without this API, and says so
        return False
    return True


def _name_http_app() -> None:
    """Several processes that answer clients import their app by this name, and load no plugins."""
    from sglang.srt.environ import envs

    from star_kv_sglang.compat import HTTP_APP
    from star_kv_sglang.server_args import set_for_this_engine

    set_for_this_engine(envs.SGLANG_HTTP_SERVER_APP_PATH, HTTP_APP)


def install_program_hooks() -> None:
    """Let frontend programs of this process share what their forks have in common; once is enough.

    Raises:
        SeamMovedError: SGLang did not take the hook.
    """
    _install_late(PROGRAM_HOOKS)


def install_image_sharing() -> None:
    """Let processed screenshots lie in shared memory in the process that answers clients; once is enough.

    Raises:
        SeamMovedError: SGLang did not take a hook.
        UnsupportedSetupError: The scheduler could not read what this process shares.
    """
    from star_kv_sglang.images.segment import can_be_mapped_by_a_child

    if not can_be_mapped_by_a_child():
        raise UnsupportedSetupError(
            [
                "screenshots in shared memory (--kv-image-cache-mb): this machine does not let a process open "
                "another one's /proc/PID/fd, as the scheduler would; use --kv-image-cache-mb 0"
            ]
        )
    _install_late(IMAGE_HOOKS)
    _install_late(REFERENCE_HOOKS)


def _install_late(seams: tuple[Seam, ...]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    if not active_hooks(seams):
        _register(seams)
        # This process has loaded its plugins, and SGLang applies hooks only then.
        HookRegistry.apply_hooks()
    verify_active(seams)


def active_hooks(seams: Iterable[Seam] = HOOKS) -> list[str]:
    """Targets of our hooks that are in place in this process."""
    return [seam.target for seam in seams if _is_wrapped(pkgutil.resolve_name(seam.target), seam)]


def verify_active(seams: Iterable[Seam] = HOOKS) -> None:
    """Make sure that every hook is in place: SGLang logs and skips what fails.

    Raises:
        SeamMovedError: A hook is missing.
    """
    from star_kv_sglang.compat import SUPPORTED_SGLANG

    seams = tuple(seams)
    missing = sorted({seam.target for seam in seams} - set(active_hooks(seams)))
    if missing:
        raise SeamMovedError([f"hook on {target} was not applied" for target in missing], SUPPORTED_SGLANG)


def _register(seams: Iterable[Seam]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    kinds = {SeamKind.AROUND: HookType.AROUND, SeamKind.AFTER: HookType.AFTER}
    for seam in seams:
        HookRegistry.register(seam.target, _hook_of(seam), kinds[seam.kind])


def _is_wrapped(function: Any, seam: Seam) -> bool:
    """Whether one of SGLang's wrappers around ``function`` calls the seam's hook."""
    hook = _hook_of(seam)
    while function is not None:
        cells = getattr(function, "__closure__", None) or ()
        if any(cell.cell_contents is hook for cell in cells):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _hook_of(seam: Seam) -> Any:
    if seam.hook is None:
        raise ValueError(f"{seam.target} has no hook")
    return getattr(hooks, seam.hook)
