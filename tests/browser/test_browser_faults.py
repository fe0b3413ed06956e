"""A browser that crashes or hangs, and pages that never load or never answer: a line each, and the others go on."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.browser import chromium
from star_kv_sglang.tools.browser.extra import pages_folder
from star_kv_sglang.tools.browser.miniwob import SCALE, WINDOW, MiniWobEnvironment, MiniWobSuite, miniwob_suite
from star_kv_sglang.tools.browser.scripted import ScriptedAgent
from star_kv_sglang.tools.browser.site import serving_pages
from star_kv_sglang.tools.rollout import Action, BranchResult, End, RolloutSettings
from tests.browser.miniwob import play
from tests.rollout.fake_server import fake_server, reply
from tests.rollout.small_world import Faults

pytestmark = pytest.mark.slow

WANDERING = ScriptedAgent(detours=0.6)
SETTINGS = partial(RolloutSettings, tasks=("enter-text",), branches=2, max_turns=40)


async def signal_in_mid_play(number: signal.Signals, out: Path, suite: MiniWobSuite) -> None:
    """Signals the browser once turns have been played."""
    deadline = time.monotonic() + 60
    while sum(path.read_text().count('"turn"') for path in out.rglob("*.jsonl")) < 6:
        assert time.monotonic() < deadline, "it plays"
        await asyncio.sleep(0.02)
    for process in suite.chromium.processes():
        process.send_signal(number)


Played = list[list[tuple[str, tuple[Action, ...]]]]


def played(results: list[BranchResult]) -> Played:
    return [[(row.screen, row.actions) for row in one.rows] for one in results]


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """What a rollout without faults plays."""
    with fake_server(reply("x4 y4")) as server:
        return played(play(server.url, tmp_path_factory.mktemp("untroubled"), SETTINGS(), agent=WANDERING))


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "closed"), (signal.SIGSTOP, "hangs: ")], ids=["crash", "hang"]
)
def test_a_browser_that_goes_is_replaced_and_all_branches_come_back_to_their_place(
    number: signal.Signals, said: str, tmp_path: Path, untroubled: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium, "_OPEN_S", 5.0)
    monkeypatch.setattr(chromium, "_CLOSE_S", 1.0)
    watcher = Faults()
    # On a busy machine a browser that only takes its time may be given up as well, which changes no trace.
    settings = SETTINGS(environment_timeout_s=5.0, retries=10)
    with fake_server(reply("x4 y4")) as server:
        meanwhile = partial(signal_in_mid_play, number, tmp_path)
        results = play(server.url, tmp_path, settings, agent=WANDERING, watcher=watcher, meanwhile=meanwhile)
    assert [one.success for one in results] == [True] * 2
    assert watcher.faults and all("\n" not in text for _, text in watcher.faults)
    assert any(said in text for _, text in watcher.faults)
    assert played(results) == untroubled


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_page_that_never_loads_fails_its_branches_alone(tmp_path: Path) -> None:
    class OneIsSilent(MiniWobSuite):
        @asynccontextmanager
        async def open(self, task: str) -> AsyncIterator[MiniWobEnvironment]:
            if task == "click-test-2":
                async with self.chromium.page(*WINDOW, SCALE) as page:
                    yield MiniWobEnvironment(page, f"{silent}/miniwob/{task}.html", load_ms=700)
            else:
                async with super().open(task) as environment:
                    yield environment

    with fake_server(reply("x4 y4")) as server, silent_server() as silent:
        results = play(
            server.url,
            tmp_path,
            SETTINGS(tasks=("click-test-2", "click-link"), branches=2, retries=0),
            change=lambda suite: OneIsSilent(suite.chromium, suite._site, suite.tasks),
        )
    assert [one.end.end for one in results] == [End.FAILED, End.FAILED, End.DONE, End.DONE]
    assert results[0].end.error == f"{silent}/miniwob/click-test-2.html has not loaded within 0.7 s"


def test_a_machine_that_takes_its_time_before_a_page_begins_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def words_of_the_task() -> str:
        async with miniwob_suite() as suite, suite.open("click-test") as environment:
            clock = environment._page.clock
            install = clock.install

            async def install_slowly(**given: Any) -> None:
                await install(**given)
                await asyncio.sleep(1.5)

            monkeypatch.setattr(clock, "install", install_slowly)
            return await environment.reset(5)

    assert "button" in asyncio.run(words_of_the_task())


LOOPING = """<script src="../core/core.js"></script><script>
var genProblem = () => {}; window.onload = () => core.startEpisode();
</script><div id="wrap"><div id="query">Click.</div><button id="subbtn" onclick="for (;;);">loop</button></div>"""


def test_a_page_that_loops_for_ever_is_given_up_and_no_page_of_miniwob_is_told(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    (pages / "miniwob").mkdir(parents=True)
    (pages / "core").symlink_to(pages_folder() / "core")
    (pages / "miniwob" / "click-test.html").write_text(LOOPING)
    (pages / "miniwob" / "click-test-2.html").write_text("<p>Welcome")
    (pages / "miniwob" / "click-link.html").symlink_to(pages_folder() / "miniwob" / "click-link.html")
    (pages / "common").symlink_to(pages_folder() / "common")
    tasks = ("click-test", "click-test-2", "click-link")
    with fake_server(reply("x4 y4")) as server, serving_pages(pages) as site:
        results = play(
            server.url,
            tmp_path / "out",
            SETTINGS(tasks=tasks, branches=1, retries=0, environment_timeout_s=10.0),
            change=lambda suite: MiniWobSuite(suite.chromium, site, tasks),
        )
    assert [one.end.error for one in results] == [
        "the environment hangs: an action took more than 10 s",
        f"{site}/miniwob/click-test-2.html is no page of MiniWoB++",
        None,
    ]
    assert results[2].success
