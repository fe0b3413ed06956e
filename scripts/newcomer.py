"""A newcomer's path: a fresh checkout, and only the commands that README and docs/ show, on a CPU.

    python scripts/newcomer.py                 clones, installs (12 GB), starts the server, runs every command
    python scripts/newcomer.py --venv .venv    the same in an environment that is there, which takes a minute or two

Commands are run as they stand, but for three things: the clone is of this checkout, the server gets a free port, and
files that a reader would have (`screen.png`, ...) are screenshots of the tests. In an environment that is there nothing
is installed, and the clone's own files are what it runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from docs_commands import ROOT, Block, all_blocks

FIRST_PAGES = ("README.md", "docs/quickstart.md")
START_PAGE = FIRST_PAGES[-1]
PORT = "30000"
READERS_FILES = ("screen.png", "next.png", "before.png", "after.png")
SAMPLES = "tests/examples/data/samples"
TREE = "build/tree"
START_S = 300
BLOCK_S = 240
WATCH_S = 60


@dataclass(frozen=True)
class Place:
    """Where a newcomer works.

    Attributes:
        folder: The checkout.
        port: The server's.
        log: The server's output.
        is_installed: Its environment was there before.
    """

    folder: Path
    port: int
    log: Path
    is_installed: bool

    def ported(self, text: str) -> str:
        """Commands for this server."""
        return text.replace(f":{PORT}", f":{self.port}")

    @property
    def environment(self) -> dict[str, str]:
        """Of every command: what an activated environment would be."""
        venv = self.folder / ".venv" / "bin"
        own = {"PYTHONPATH": str(self.folder / TREE)} if self.is_installed else {}
        return {**os.environ, "PATH": f"{venv}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", **own}

    @property
    def only_the_tree(self) -> dict[str, str]:
        """For a process in the checkout's root, where half of the package lies under its import name."""
        return {"PYTHONSAFEPATH": "1"} if self.is_installed else {}


def fresh_checkout(folder: Path, venv: Path | None) -> None:
    """A clone of this repository with what is not committed yet, and perhaps an environment."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    if venv is not None:
        (folder / ".venv").symlink_to(venv.resolve())


def readers_files(folder: Path) -> None:
    """Screenshots under the names that the pages use."""
    pictures = sorted((folder / SAMPLES).glob("*.png"))
    for name, picture in zip(READERS_FILES, pictures, strict=False):
        shutil.copy2(picture, folder / name)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(place: Place, start: Block) -> Iterator[None]:
    """The server that the first page starts, until the block ends.

    Raises:
        SystemExit: It does not come up.
    """
    *before, command = [line for line in start.text.splitlines() if not line.startswith("git clone")]
    run(f"python3 scripts/link_tree.py {TREE}" if place.is_installed else "\n".join(before), place).check_returncode()
    with place.log.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            f"exec {command} --port {place.port}", shell=True, executable="/bin/bash", cwd=place.folder,
            env=place.environment | place.only_the_tree, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while not answers(f"http://127.0.0.1:{place.port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server of {start.place} did not start:\n{place.log.read_text(encoding='utf-8')[-3000:]}")
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    """Whether somebody answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def run(text: str, place: Place, *, language: str = "bash") -> subprocess.CompletedProcess[str]:
    """Run commands as they stand, and stop at the first that fails."""
    environment, program = place.environment, ["bash", "-euo", "pipefail", "-c"]
    if language == "python":
        environment, program = environment | place.only_the_tree, ["python", "-c"]
    process = subprocess.Popen(
        [*program, place.ported(text)], cwd=place.folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        said = process.communicate(timeout=BLOCK_S)[0]
    finally:
        # What a command started goes with it, also when it took too long.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(text, process.returncode, said, "")


def watch(text: str, place: Place) -> subprocess.CompletedProcess[str]:
    """Start what shows a page, open the page, and end it by Ctrl-C."""
    port = free_port()
    process = subprocess.Popen(
        f"exec {place.ported(text).strip()} --port {port}", shell=True, executable="/bin/bash", cwd=place.folder,
        env=place.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline, is_shown = time.monotonic() + WATCH_S, False
    while not is_shown and process.poll() is None and time.monotonic() < deadline:
        is_shown = answers(f"http://127.0.0.1:{port}/")
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=WATCH_S)[0]
    return subprocess.CompletedProcess(text, 0 if is_shown and "Traceback" not in said else 1, said, "")


def went_wrong(done: subprocess.CompletedProcess[str]) -> bool:
    """A command failed, or a server's answer is an error; curl alone would not say so."""
    return done.returncode != 0 or '"error"' in done.stdout or "unknown_images" in done.stdout


def walk(place: Place) -> int:
    """Run every command of a newcomer's path, and say how each went.

    Returns:
        How many failed.
    """
    blocks = all_blocks()
    start = next(block for block in blocks if block.kind == "start" and block.page == START_PAGE)
    mine = [block for block in blocks if block.kind == "watch" or (block.kind == "cpu" and not block.rest)]
    mine.sort(key=lambda block: FIRST_PAGES.index(block.page) if block.page in FIRST_PAGES else len(FIRST_PAGES))
    num_failed = 0
    begin = time.monotonic()
    with server(place, start):
        print(f"ok      {time.monotonic() - begin:6.1f} s  {start.place}: the server answers", flush=True)
        readers_files(place.folder)
        for block in mine:
            begin = time.monotonic()
            is_page = block.kind == "watch"
            done = watch(block.text, place) if is_page else run(block.text, place, language=block.language)
            failed = went_wrong(done)
            num_failed += failed
            print(f"{'FAILED' if failed else 'ok':7} {time.monotonic() - begin:6.1f} s  {block.place}", flush=True)
            if failed:
                print(done.stdout[-3000:], flush=True)
    return num_failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="an environment that is there; else `make install` makes one")
    parser.add_argument("--folder", type=Path, help="where the checkout goes; else a temporary folder")
    arguments = parser.parse_args()
    # Whoever ends this ends the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary) / "star-kv-sglang").absolute()
        fresh_checkout(folder, arguments.venv)
        return int(walk(Place(folder, free_port(), folder.parent / "server.log", arguments.venv is not None)) > 0)


if __name__ == "__main__":
    sys.exit(main())
