"""The page follows agents on a real server, with a key; the server shows what it was asked to show."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from star_kv_sglang import cpu_mode
from star_kv_sglang.introspection.protocol import PROMPT
from star_kv_sglang.tools.view.app import make_app
from star_kv_sglang.tools.view.client import Client
from star_kv_sglang.tools.view.live import LiveSource
from star_kv_sglang.tools.view.recording import Recorder, Recording
from tests.architecture.imports import ROOT
from tests.engine.preloaded_server import preloaded_serving
from tests.star_kv import star_kv
from tests.view import made
from tests.view.browser import OVERLAPS, chromium, page_of
from tinygui.trajectories import branching

MODEL = ROOT / "examples" / "tinygui" / "model"
KEY = "secret-of-the-operator"
BRANCHES, TURNS = 3, 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = ["--model-path", str(MODEL), "--max-total-tokens", "8000", "--kv-policy", "star", "--skip-server-warmup"]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with preloaded_serving([*flags, "--kv-introspection", "content", "--admin-api-key", KEY], log) as url:
        yield url


def run_agents(url: str) -> list[str]:
    """Branches of agents, turn by turn, each with its answers in its prompt; returns the answers."""
    answers = []
    for trajectory in branching(5, num_branches=BRANCHES, num_turns=TURNS):
        messages: list[dict[str, object]] = []
        for turn in trajectory.turns:
            image = "data:image/png;base64," + base64.b64encode(turn.image_png).decode()
            content = [
                {"type": "text", "text": turn.step},
                {"type": "image_url", "image_url": {"url": image}},
                {"type": "text", "text": turn.questions[0].text},
            ]
            messages.append({"role": "user", "content": content})
            body = {"model": "default", "temperature": 0, "max_tokens": 6, "messages": messages}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
            text = answer["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": text})
            answers.append(text)
    return answers


def test_it_follows_a_run(server: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")
    source = LiveSource(Client(server, KEY), interval_s=0.25, recorder=recorder, with_frames=True)
    with made.running(make_app(source)) as url, chromium() as browser, page_of(browser, url) as page:
        expect(page.locator("#status")).to_have_text("following")
        answers: list[str] = []
        agents = Thread(target=lambda: answers.extend(run_agents(server)))
        agents.start()
        expect(page.locator("#cut-rows tr").first).to_contain_text("policy, behind its prompt", timeout=60_000)
        assert agents.is_alive(), "the page shows the run while it goes on"
        agents.join()
        turns = page.locator("#numbers div", has_text="turns").locator("b")
        expect(turns).to_have_text(str(BRANCHES * TURNS))
        page.get_by_role("button", name="Show heat maps").click()
        expect(page.locator(".frame canvas[aria-label*='kept']").first).to_be_visible()
        expect(page.locator(".frame canvas[aria-label*='as it was sent']").first).to_be_visible()
        page.locator("summary", has_text="Prompt").click()
        expect(page.locator("pre.prompt")).to_contain_text("<|im_start|> user")
        assert page.evaluate(OVERLAPS) == []
    assert len(answers) == BRANCHES * TURNS
    recording = Recording(tmp_path / "run.jsonl")
    assert recording.problem is None and "screenshot" in (tmp_path / "run.jsonl").read_text(encoding="utf-8")
    last = [record for record in recording.records if record["type"] == "tree"][-1]
    assert last["totals"]["num_prompts"] == BRANCHES * TURNS


def test_what_it_tells_agrees_with_the_servers_info(server: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    info = httpx.get(f"{server}/server_info").json()["internal_states"][0]["star_kv"]
    shown = httpx.get(f"{server}/star_kv/tree", headers=headers).json()
    nodes = [dict(zip(shown["node_fields"], node, strict=True)) for node in shown["nodes"]]
    assert sum(node["live"] for node in nodes) == info["num_live_tokens"]
    assert sum(node["live"] for node in nodes if node["flags"] & 1) == info["num_shared_tokens"]
    assert sum(node["length"] - node["live"] for node in nodes) == info["num_hole_tokens"] > 0
    assert sum(cut[6] for cut in shown["cuts"] if cut[2] == PROMPT) == info["num_pruned_tokens"]
    # Each layer keeps as many tokens of a pruned screenshot as it has slots.
    node = next(node for node in nodes if node["frames"] and node["live"] < node["length"])
    _, start, rows, cols, first, end, live = node["frames"][0]
    frame = httpx.get(f"{server}/star_kv/frame", params={"node": node["id"], "start": start}, headers=headers).json()
    bits = np.frombuffer(base64.b64decode(frame["kept"]), np.uint8).reshape(frame["units"], -1)
    kept = np.unpackbits(bits, axis=1, count=rows * cols)[:, first - start : end - start]
    assert kept.sum(axis=1).tolist() == [live] * frame["units"]


@pytest.mark.parametrize("path", ["tree", "frame?node=1&start=1", "text?node=1", "screenshot?image=x"])
def test_nobody_sees_anything_without_the_servers_key(server: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(f"{server}/star_kv/{path}", headers=headers)
        assert answer.status_code == 401 and json.loads(answer.text) == {"error": "Unauthorized"}


def test_the_terminal_says_that_a_key_is_needed(server: str) -> None:
    answer = star_kv(["view", "--live", server])
    assert answer.exit_code == 2 and "asks for its key: give --api-key" in answer.output
