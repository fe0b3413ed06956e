"""The pictures of docs/viewer.md and docs/tune.md, taken in Chromium: agents on a real server are recorded, and the
viewer shows the recording; `star-kv tune` has written its page.

    python scripts/docs_pictures.py                    docs/img/view-*.png, from a run that it records itself
    python scripts/docs_pictures.py RUN.jsonl          the same from a recording
    python scripts/docs_pictures.py --page OUT/tune.html     docs/img/tune-page.png

Needs what `make install` brings and a Chromium browser (scripts/install_browser.sh); a minute or two on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from star_kv_sglang.tools.chat import ChatClient
from star_kv_sglang.tools.rollout.runner import run
from star_kv_sglang.tools.rollout.server import serving
from star_kv_sglang.tools.view.app import make_app
from star_kv_sglang.tools.view.client import Client
from star_kv_sglang.tools.view.live import LiveSource
from star_kv_sglang.tools.view.recorded import RecordedSource
from star_kv_sglang.tools.view.recording import Recorder

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "tinygui" / "model"
OUT = ROOT / "docs" / "img"
BRANCHES, TURNS = 8, 6
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MOST_BYTES = 300_000
COLOURS = 128
"""Of a picture: none of them shows more, and each is a third of its size."""


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        name: of its file, behind ``view-``.
        width, height: of the window.
        scheme: light or dark.
        part: what of the page is taken; all that is in sight if None.
    """

    name: str
    width: int
    height: int
    scheme: str
    part: str | None = None


SHOTS = (
    Shot("page-light", 1280, 1000, "light"),
    Shot("page-dark", 1280, 1000, "dark"),
    Shot("tree", 1280, 1000, "light", "#tree-panel"),
    Shot("branch", 1280, 1000, "light", "#detail"),
    Shot("charts", 1280, 1000, "light", "#charts"),
    Shot("cuts", 1280, 1000, "light", "#cuts-panel"),
)
TUNED = Shot("tune-page", 1280, 1000, "light")


def record(path: Path) -> None:
    """Branches of agents on a real server, watched."""
    sys.path.insert(0, str(ROOT / "examples"))
    from tinygui.trajectories import branching

    flags = ["--model-path", str(MODEL), "--max-total-tokens", "20000", "--kv-policy", "star", "--skip-server-warmup"]
    with serving([*flags, "--kv-introspection", "content"], path.with_suffix(".log")) as url:

        async def watch() -> None:
            source = LiveSource(Client(url), interval_s=0.25, recorder=Recorder(path), with_frames=True)
            follower = asyncio.create_task(source.follow())
            try:
                async with ChatClient(url) as client:
                    await run(client, branching(0, num_branches=BRANCHES, num_turns=TURNS))
            finally:
                await asyncio.sleep(5.0)  # the last heat maps
                follower.cancel()
                await asyncio.gather(follower, return_exceptions=True)

        asyncio.run(watch())


@contextmanager
def shown(path: Path) -> Iterator[str]:
    """The viewer's page of a recording."""
    server = uvicorn.Server(uvicorn.Config(make_app(RecordedSource(path)), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of this machine."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit("needs a Chromium browser: bash scripts/install_browser.sh")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def take_page(page_file: Path, out: Path) -> Path:
    """Take the picture of a page that `star-kv tune` has written, down to the first changed turn; returns its file."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
        page.goto(page_file.resolve().as_uri())
        first = page.locator(".change").first.bounding_box()
        height = 1000 if first is None else min(2200, round(first["y"] + first["height"]) + 16)
        page.set_viewport_size({"width": 1280, "height": height})
        return _shoot(page, TUNED, out / f"{TUNED.name}.png")


def take(path: Path, out: Path, shots: Sequence[Shot] = SHOTS) -> list[Path]:
    """Take the pictures of a recording; returns their files."""
    with shown(path) as url, chromium() as browser:
        files = []
        for shot in shots:
            page = browser.new_page(
                viewport={"width": shot.width, "height": shot.height},
                color_scheme="dark" if shot.scheme == "dark" else "light",
            )
            page.goto(url)
            page.locator(".frame canvas[aria-label*='kept']").first.wait_for()
            page.wait_for_timeout(500)
            files.append(_shoot(page, shot, out / f"view-{shot.name}.png"))
            page.close()
    return files


def _shoot(page: Page, shot: Shot, file: Path) -> Path:
    if shot.part is None:
        page.screenshot(path=file)
    else:
        page.locator(shot.part).screenshot(path=file)
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    size = file.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"{file} has {size:,} bytes; at most {MOST_BYTES:,} are committed")
    return file


def main() -> None:
    """Record where nothing was given, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?", help="of `star-kv view --live URL --record FILE`")
    parser.add_argument("--page", type=Path, help="the page of `star-kv tune`: take its picture alone")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures")
    given = parser.parse_args()
    if given.page is not None:
        file = take_page(given.page, given.out)
        print(f"{file}: {file.stat().st_size:,} bytes")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = given.recording
        if path is None:
            path = Path(folder) / "run.jsonl"
            record(path)
        for file in take(path, given.out):
            print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
