"""Eight branches in a real browser on a real SGLang server: rewards, turns, and where the time went.

``make demo-browser``, or ``python examples/demo_browser.py``. It starts the server on this machine (without a GPU: in
CPU mode) with the small model and STaR-KV, and plays a few tasks of MiniWoB++ in Chromium. The small model cannot play
web pages: it is asked at every turn, with all screenshots so far, and a script acts.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from star_kv_sglang.errors import StarKVError
from star_kv_sglang.tools.cli.rollout import rollout
from star_kv_sglang.tools.rollout.server import serving

MODEL = Path(__file__).parent / "tinygui" / "model"
FLAGS = ("--kv-policy", "star", "--enable-metrics", "--enable-cache-report")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", **os.environ}
"""In CPU mode, torch's threads would wait for the cores that the browser has, and the server with them."""
TASKS = "click-button,click-tab-2,enter-password,click-checkboxes"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for traces, screenshots and the server's log.")] = Path(
        "out/demo-browser"
    ),
    tasks: Annotated[str, typer.Option(help="Names with commas between them, or all with a script.")] = TASKS,
    branches: Annotated[int, typer.Option(min=1, help="Of each task.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the pages.")] = 0,
) -> None:
    """Serve, play, and show the tables; what an earlier demo left in the folder is replaced."""
    console = Console()
    shutil.rmtree(out / "rollout", ignore_errors=True)
    with console.status("Starting the server") as status:

        def on_wait(seconds: float) -> None:
            status.update(f"Starting the server (SGLang loads, {seconds:.0f} s)")

        flags, log = ("--model-path", str(MODEL), *FLAGS), out / "server.log"
        with serving(flags, log, on_wait=on_wait, environment=ENVIRONMENT) as url:
            status.stop()
            console.print(f"Server is ready at {url}; its log is {log}", soft_wrap=True)
            console.print("The agent asks the model at every turn, and acts by script.")
            rollout(None, base_url=url, env="miniwob", tasks=tasks, branches=branches, seed=seed, out=out / "rollout")


if __name__ == "__main__":
    try:
        typer.run(demo)
    except StarKVError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
