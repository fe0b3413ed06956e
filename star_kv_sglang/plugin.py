"""Entry point of SGLang's plugin group: every process that SGLang starts calls :func:`register`.

A process that parses the command line gets our flags, nothing else. A process that was started with a policy
activates it. SGLang logs and skips a plugin that raises an Exception, and goes on as if nobody had asked for a policy:
what fails here leaves as SystemExit, with its reason.
"""

from __future__ import annotations

import sys
import traceback


def register() -> None:
    """Called by SGLang before it parses arguments, and at the start of its scheduler processes.

    Raises:
        SystemExit: SGLang cannot be given our flags, or a policy was asked for and cannot be activated.
    """
    try:
        _register()
    except Exception as error:
        sys.stderr.write(_reason(error))
        raise SystemExit(1) from error


def _register() -> None:
    from star_kv_sglang import cpu_mode
    from star_kv_sglang.patches import activate
    from star_kv_sglang.server_args import inherited_config

    if cpu_mode.is_enabled():
        cpu_mode.leave_out_log_lines()
    config = inherited_config()
    if config is None:
        activate.install_flags()
        return
    if not config.active:
        return
    from star_kv_sglang.engine import runtime

    runtime.install(config)
    activate.activate()


def _reason(error: Exception) -> str:
    """What is written before the process ends; an error that nobody foresaw comes with its place."""
    from star_kv_sglang.errors import StarKVError

    if isinstance(error, StarKVError):
        return f"{error}\n"
    place = "".join(traceback.format_exception(error))
    return (
        f"{place}star-kv-sglang could not be loaded into SGLang: {type(error).__name__}: {error}\n"
        "`star-kv doctor` says what does not fit. To run SGLang without it, uninstall star-kv-sglang, or name only the "
        "other plugins in SGLANG_PLUGINS.\n"
    )
