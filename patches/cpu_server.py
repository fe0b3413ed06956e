"""SGLang's server in CPU mode: it imports SGLang once for all of its processes."""

from __future__ import annotations

import gc
import sys
from multiprocessing import util

import setproctitle

from star_kv_sglang.cpu_mode import leave_out_log_lines
from star_kv_sglang.cpu_mode.template import Template, forking

PROGRAM = "from star_kv_sglang.patches.cpu_server import main; main()"


def preload() -> None:
    """Import what SGLang's processes import; the models are what every scheduler begins with."""
    # It finds the place of its process's title by the environment, which must not have changed yet.
    setproctitle.getproctitle()
    leave_out_log_lines()
    import sglang.cli.serve
    import sglang.srt.entrypoints.http_server
    import sglang.srt.models.registry  # noqa: F401

    # Modules are never collected, and a look at them would copy them into every fork.
    gc.freeze()


def main() -> None:
    """`sglang` with the words behind the program, as its own script does it."""
    preload()
    # multiprocessing gives its arguments by place.
    util.spawnv_passfds = forking(Template.of_this_process())  # type: ignore[assignment]
    from sglang.cli.main import main as sglang_main

    sys.argv[0] = "sglang"
    sys.exit(sglang_main())
