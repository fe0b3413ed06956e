"""What a server may answer, and what a replay makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from star_kv_sglang.tools.eval.runner import Protocol
from star_kv_sglang.tools.eval.samples import TaskKind
from star_kv_sglang.tools.tune.actions import answer_reader
from star_kv_sglang.tools.tune.asking import TOP, Asker, Heard, Prompt, RefusedError, Token
from star_kv_sglang.tools.tune.errors import ReplayError
from star_kv_sglang.tools.tune.prompts import PromptWriter
from star_kv_sglang.tools.tune.recordings import Thread, Turn
from star_kv_sglang.tools.tune.records import FULL, CellTurn, FullTurn, TurnFile, read_turns, turn_file
from star_kv_sglang.tools.tune.replay import Cell, Replay
from star_kv_sglang.tools.tune.threads import load_threads
from tests.tune.cases import data_url, png, user

PROMPT = Prompt((1, 2), ("data:image/png;base64,AA",), "name", "salt", 0.2, traced=True)
GOOD = {
    "text": " x1 y1 ",
    "meta_info": {
        "output_token_logprobs": [[-0.5, 7, None], [-0.1, 8, None]],
        "output_top_logprobs": [[[-0.5, 7, None], [-1.0, 9, None]], [[-0.1, 8, None]]],
        "output_token_ids_logprobs": [[[-3.0, 5, None]], [[-4.0, 5, None]]],
        "prompt_tokens": 90, "cached_tokens": 40, "finish_reason": {"type": "length"},
        "star_kv": [{"live": 30, "pruned": 60}, None],
    },
}  # fmt: skip


def ask(answer: Callable[[httpx.Request], httpx.Response], call: Callable[[Asker], Any]) -> Any:
    """One call of a server that answers so."""

    async def run() -> Any:
        async with Asker("http://server", 5.0) as asker:
            await asker._http.aclose()
            asker._http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")
            return await call(asker)

    return asyncio.run(run())


def hear(asker: Asker) -> Any:
    return asker.hear(PROMPT, 4, [5])


def test_an_answer_comes_with_what_the_server_thought_of_it() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=GOOD)

    heard = ask(answer, hear)
    tokens = (Token(7, -0.5, {7: -0.5, 9: -1.0}), Token(8, -0.1, {8: -0.1}))
    assert heard == Heard("x1 y1", tokens, {5: -3.0}, 90, 40, 30, cut_off=True)
    (body,) = sent
    assert body["sampling_params"]["custom_params"] == {"kv_budget": 0.2, "kv_trace": True}
    assert (body["rid"], body["cache_salt"], body["input_ids"]) == ("name", "salt", [1, 2])
    assert (body["top_logprobs_num"], body["token_ids_logprob"], body["logprob_start_len"]) == (TOP, [5], -1)


def test_an_answer_behind_its_prompt_prunes_nothing_and_may_be_read_as_other_tokens() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        said = [[None, 7, None], [-2.0, 8, None]]
        return httpx.Response(200, json={"meta_info": {"input_token_logprobs": said, "input_top_logprobs": [None, []]}})

    assert ask(answer, lambda asker: asker.hear_said(PROMPT, (7, 8), 90)) == (Token(8, -2.0, {}),)
    assert ask(answer, lambda asker: asker.hear_said(PROMPT, (7, 9), 90)) is None
    assert sent[0]["input_ids"] == [1, 2, 7, 8]
    assert sent[0]["logprob_start_len"] == 90
    assert sent[0]["sampling_params"]["custom_params"] == {"kv_budget": 1.0, "kv_trace": False}


def _gone(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def _slow(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("slow", request=request)


WRONG: list[tuple[Callable[[httpx.Request], httpx.Response], type[ReplayError], str]] = [
    (lambda request: httpx.Response(400, text="too long"), RefusedError, "the server answered 400: too long"),
    (lambda request: httpx.Response(200, text="hello"), ReplayError, "answered no JSON but 'hello'"),
    (lambda request: httpx.Response(200, json=[1]), ReplayError, "answered no JSON object but"),
    (
        lambda request: httpx.Response(200, json={"text": "x"}),
        ReplayError,
        r"in another form \(KeyError\('meta_info'\)",
    ),
    (_gone, ReplayError, r"the server is gone \(ConnectError: refused\); .* goes on where it stopped"),
    (_slow, ReplayError, "did not answer within 5 s; give more with --timeout"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), WRONG, ids=["400", "text", "list", "form", "gone", "slow"])
def test_a_server_that_does_not_answer_as_it_should_is_told(
    answer: Callable[[httpx.Request], httpx.Response],
    kind: type[ReplayError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("star_kv_sglang.tools.tune.asking._PAUSE_S", 0.0)
    with pytest.raises(kind, match=words):
        ask(answer, hear)


class LengthWriter:
    """Writes a prompt of one token for each message."""

    def ids(self, turn: Turn, answers: dict[int, str]) -> tuple[int, ...]:
        return tuple(range(len(turn.said)))


@dataclass
class FakeServer:
    """Answers the same words; ``cached`` says what it finds of each prompt."""

    cached: Sequence[int]
    prompts: list[Prompt] = field(default_factory=list)

    async def hear(self, prompt: Prompt, max_tokens: int, about: Sequence[int] = ()) -> Heard:
        self.prompts.append(prompt)
        cached = self.cached[len(self.prompts) - 1]
        return Heard("x1 y1", (Token(7, -0.5, {}),), {}, 1000 * len(prompt.images), cached, 500, cut_off=False)

    async def flush(self) -> None:
        pass


def threads(tmp_path: Path) -> list[Thread]:
    """A thread of two turns."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([user("one", data_url(png("red"))), user("two", data_url(png("blue")))]))
    return load_threads(path)


def replays(tmp_path: Path) -> Replay:
    writer = cast(PromptWriter, LengthWriter())
    return Replay(tmp_path, writer, answer_reader("small", TaskKind.COMPUTER), Protocol.PERSISTENT, 0.04, 8, 1, 1)


def play(tmp_path: Path, replay: Replay, cached: Sequence[int]) -> FakeServer:
    """All turns with the full cache, then in a cell."""
    server = FakeServer([0, 1000, *cached])
    asker, recorded = cast(Asker, server), threads(tmp_path)
    asyncio.run(replay.full(asker, recorded))
    asyncio.run(replay.cell(asker, Cell.of("star", 0.2), recorded, tmp_path / "traces"))
    return server


def test_turns_of_a_thread_share_a_salt_and_have_budgets_of_their_cell(tmp_path: Path) -> None:
    server = play(tmp_path, replays(tmp_path), [0, 1000])
    assert [prompt.budget for prompt in server.prompts] == [1.0, 1.0, 0.2, 0.2]
    salts = [prompt.salt for prompt in server.prompts]
    assert salts[0] == salts[1] != salts[2] == salts[3]
    assert [len(prompt.images) for prompt in server.prompts] == [1, 2, 1, 2]
    rows = read_turns(turn_file(tmp_path, "star-20"), CellTurn)
    assert [(row.same, row.kl, row.held / row.prompt) for row in rows] == [(True, 0.0, 0.5), (True, 0.0, 0.25)]


def test_a_stateless_prompt_shares_nothing(tmp_path: Path) -> None:
    server = play(tmp_path, replace(replays(tmp_path), protocol=Protocol.STATELESS), [0, 0])
    assert len({prompt.salt for prompt in server.prompts}) == 4


def test_a_history_that_was_pushed_out_of_the_cache_ends_the_replay(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"star-20: a, turn 2 found 10 tokens .* not 1000: .* --at-a-time"):
        play(tmp_path, replays(tmp_path), [0, 10])


def test_a_run_that_goes_on_keeps_the_answers_that_it_has(tmp_path: Path) -> None:
    """The conversation has no answers of its own, and the server says something else the second time."""
    replay, said = replays(tmp_path), []

    class Remembering(LengthWriter):
        def ids(self, turn: Turn, answers: dict[int, str]) -> tuple[int, ...]:
            said.append(dict(answers))
            return super().ids(turn, answers)

    file = TurnFile(turn_file(tmp_path, FULL), FullTurn)
    file.add(FullTurn("a", 0, "x9 y9", [[7, -0.5, {}]], 1000))
    again = replace(replay, writer=cast(PromptWriter, Remembering()))
    asyncio.run(again.full(cast(Asker, FakeServer([0, 1000])), threads(tmp_path)))
    assert said == [{}, {1: "x9 y9"}]
    assert [row.text for row in read_turns(turn_file(tmp_path, FULL), FullTurn)] == ["x9 y9", "x1 y1"]
