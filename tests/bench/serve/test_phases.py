"""What the phases count, on an engine whose behaviour is known."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from star_kv_sglang.tools.bench.serve.branches import run_branches
from star_kv_sglang.tools.bench.serve.client import Prompt, Stream
from star_kv_sglang.tools.bench.serve.context import Context
from star_kv_sglang.tools.bench.serve.results import Figure
from star_kv_sglang.tools.bench.serve.server import Policy
from star_kv_sglang.tools.bench.serve.ttft import run_ttft, run_ttft_side_by_side
from tests.bench.serve.fake_engine import TOKENS_PER_SCREEN, FakeEngine, context


def _figures(on: Context) -> dict[str, Figure]:
    return {figure.metric: figure for figure in on.results.figures}


@pytest.mark.parametrize(
    ("engine", "alive", "note"),
    [
        pytest.param(FakeEngine(550), 5, "100 tokens of a live branch were evicted", id="all is kept"),
        pytest.param(FakeEngine(550, retracts=True), 5, "a request was retracted", id="put back"),
        # a prefill needs 100 slots, whatever stays of it: 22 * 20 + 100 = 540
        pytest.param(FakeEngine(550, kept=0.2), 23, "20 tokens of a live branch were evicted", id="a fifth is kept"),
    ],
)
def test_branches_are_counted_until_one_loses_tokens(engine: FakeEngine, alive: int, note: str, tmp_path: Path) -> None:
    on = context(engine, tmp_path, "branches", branch_screens=10)
    asyncio.run(run_branches(on))
    figure = _figures(on)["branches_alive"]
    assert (figure.value, figure.history, figure.partial, figure.note) == (alive, 100, False, note)
    assert _figures(on)["slots_per_branch"].value == 100 * engine.kept


def test_branches_that_time_ends_are_marked(tmp_path: Path) -> None:
    on = context(FakeEngine(10**9), tmp_path, "branches", branch_screens=1, max_seconds=-1.0)

    class Slow(FakeEngine):
        async def ask(self, *arguments: object, **more: object) -> None:  # type: ignore[override]
            await asyncio.sleep(60)

    on.client = Slow(1000)  # type: ignore[assignment]
    asyncio.run(run_branches(on))
    figure = _figures(on)["branches_alive"]
    assert (figure.value, figure.partial) == (0, True)
    assert "no time left" in figure.note


def test_no_phase_goes_on_after_the_end_of_the_run(tmp_path: Path) -> None:
    on = context(FakeEngine(10**6), tmp_path, "ttft", max_seconds=1000.0)
    on.end = time.monotonic() - 1
    asyncio.run(run_ttft(on))
    row = _figures(on)["ttft_ms_p50"]
    assert (row.value, row.partial) == (None, True)


def test_first_token_per_turn_leaves_the_warm_up_out(tmp_path: Path) -> None:
    engine = FakeEngine(10**6)
    on = context(engine, tmp_path, "ttft", ttft_turns=3, ttft_repeats=2)
    asyncio.run(run_ttft(on))
    # one screenshot between two conversations, then the turns
    assert [len(prompt.screens) for prompt in engine.prompts] == [1, 1, 2, 3] * 3
    rows = [figure for figure in on.results.figures if figure.metric == "ttft_ms_p50"]
    assert [(row.batch, row.history, row.value) for row in rows] == [
        (turn, turn * TOKENS_PER_SCREEN, pytest.approx(50.0)) for turn in (1, 2, 3)
    ]
    scheduler = [figure.value for figure in on.results.figures if figure.metric == "scheduler_ms_p95"]
    assert scheduler == pytest.approx([20.0] * 3, abs=1e-3)


def test_each_turn_continues_the_one_before(tmp_path: Path) -> None:
    engine = FakeEngine(10**6)
    asyncio.run(run_ttft(context(engine, tmp_path, "ttft", ttft_turns=3, ttft_repeats=1)))
    _, first, second, third = engine.prompts[:4]
    assert second.text.startswith(first.text) and third.text.startswith(second.text)
    assert engine.prompts[4].text[:40] != engine.prompts[5].text[:40] != first.text[:40]


class Timed(FakeEngine):
    """An engine whose answers take known times."""

    first_s, step_s = 0.05, 0.01

    async def ask(self, prompt: Prompt, **more: object) -> Stream:  # type: ignore[override]
        answer = await super().ask(prompt, max_new_tokens=4)
        order.append(self)
        answer.chunks = [(self.first_s, 1), (self.first_s + 3 * self.step_s, 4)]
        return answer


order: list[Timed] = []


def test_side_by_side_servers_take_turns_and_each_repeat_gives_a_ratio(tmp_path: Path) -> None:
    stock, other = Timed(10**6), Timed(10**6)
    other.first_s, other.step_s = 0.06, 0.005
    on = [context(engine, tmp_path, "ttft", ttft_turns=2, ttft_repeats=3) for engine in (stock, other)]
    on[1].policy = Policy("star", 0.2)
    order.clear()
    asyncio.run(run_ttft_side_by_side(on))
    # the warm-up and three repeats, each of one screenshot and two turns, another server first each time
    assert [engine is stock for engine in order] == [*[True] * 3, *[False] * 6, *[True] * 3] * 2
    assert "ttft_ratio" not in _figures(on[0])
    found = [figure for figure in on[1].results.figures if figure.metric.endswith("_ratio")]
    assert [(row.metric, row.batch, row.value) for row in found] == [
        (metric, turn, pytest.approx(value))
        for turn in (1, 2)
        for metric, value in (("ttft_ratio", 1.2), ("scheduler_ratio", 1.0), ("step_ratio", 0.5))
    ]
    assert _figures(on[1])["step_ms_p50"].value == pytest.approx(5.0)


def test_side_by_side_stops_together(tmp_path: Path) -> None:
    on = [context(Timed(10**6), tmp_path, "ttft", ttft_turns=2, ttft_repeats=3) for _ in range(2)]
    on[1].end = time.monotonic() - 1
    asyncio.run(run_ttft_side_by_side(on))
    assert all((row := _figures(each)["ttft_ms_p50"]).value is None and row.partial for each in on)
