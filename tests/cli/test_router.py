"""SGLang's router in front of two servers: a task's branches stay together, and a server that dies costs a prefill."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang import cpu_mode
from star_kv_sglang.tools.rollout.server import free_port
from tests.architecture.imports import ROOT
from tests.engine.conversation import screenshot
from tests.engine.preloaded_server import preloaded_serving

MODEL = ROOT / "examples" / "tinygui" / "model"
NUM_BRANCHES, START_S = 3, 240.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


@dataclass
class Site:
    """A router, its two servers, and how to end each of these."""

    router: httpx.Client
    workers: list[httpx.Client]
    ends: list[ExitStack]

    def figures(self, worker: int) -> dict[str, int]:
        """What one server has counted."""
        (state,) = self.workers[worker].get("/server_info").json()["internal_states"]
        return {**state["star_kv"], **state["star_kv_images"]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    logs = tmp_path_factory.mktemp("logs")
    flags = ["--model-path", str(MODEL), "--kv-policy", "star", "--kv-budget", "0.3", "--skip-server-warmup"]
    flags += ["--max-total-tokens", "8192", "--enable-cache-report"]
    with ExitStack() as stack:
        ends = [stack.enter_context(ExitStack()) for _ in range(2)]
        urls = [end.enter_context(preloaded_serving(flags, logs / f"{i}.log")) for i, end in enumerate(ends)]
        router = stack.enter_context(routing(urls, logs / "router.log"))
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=120)) for url in (router, *urls)]
        yield Site(clients[0], clients[1:], ends)


@contextmanager
def routing(urls: list[str], log: Path) -> Iterator[str]:
    """The router as docs/scale.md starts it."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--policy", "cache_aware", "--worker-urls", *urls]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    command += ["--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
            while not is_ready(url):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")[-2000:]
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readiness", timeout=5).status_code == 200
    return False


def picture(seed: int) -> dict[str, Any]:
    file = io.BytesIO()
    screenshot(seed, 8, 8, 32).save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + b64encode(file.getvalue()).decode()}}


def user(seed: int, words: str) -> dict[str, Any]:
    return {"role": "user", "content": [picture(seed), {"type": "text", "text": words}]}


def ask(client: httpx.Client, messages: list[dict[str, Any]]) -> tuple[str, int]:
    """An answer, and how many tokens of its prompt were cached."""
    body = {"model": "default", "messages": messages, "max_tokens": 6, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return told["choices"][0]["message"]["content"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


def task(number: int) -> list[dict[str, Any]]:
    """The first turn of a task, which its branches share."""
    return [user(100 * number, f"task {number} " + "click red A here " * 8)]


def test_branches_of_a_task_share_a_server_and_its_screenshot(site: Site) -> None:
    for number in (1, 2):
        before = [site.figures(worker) for worker in range(2)]
        first = task(number)
        answer, _ = ask(site.router, first)
        for branch in range(NUM_BRANCHES):
            turn = user(100 * number + 1 + branch, "click blue F here")
            _, cached = ask(site.router, [*first, {"role": "assistant", "content": answer}, turn])
            assert cached > 64, "the shared screenshot was there"
        after = [site.figures(worker) for worker in range(2)]
        served = [after[worker]["num_prompts"] - before[worker]["num_prompts"] for worker in range(2)]
        assert sorted(served) == [0, 1 + NUM_BRANCHES]
        home = served.index(1 + NUM_BRANCHES)
        encoded = after[home]["num_encoded_images"] - before[home]["num_encoded_images"]
        assert encoded == 1 + NUM_BRANCHES, "each screenshot passed the vision tower once"


def test_a_server_that_dies_costs_its_branches_a_prefill(site: Site) -> None:
    before = [site.figures(worker)["num_prompts"] for worker in range(2)]
    messages = task(3)
    answer, _ = ask(site.router, messages)
    home = [site.figures(worker)["num_prompts"] - before[worker] for worker in range(2)].index(1)
    site.ends[home].close()
    messages += [{"role": "assistant", "content": answer}, user(301, "click blue F here")]
    answer, cached = ask(site.router, messages)
    assert cached < 16, "the other server has not seen this task"
    # It is what that server says of this prompt in any case.
    other = site.workers[1 - home]
    assert other.post("/flush_cache").status_code == 200
    assert ask(other, messages)[0] == answer
    messages += [{"role": "assistant", "content": answer}, user(302, "click red A here")]
    assert ask(site.router, messages)[1] > 128, "from here on it is at home there"
