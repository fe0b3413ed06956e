"""What the two protocols send, with an engine that only writes down what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch

from star_kv_sglang.tools.eval.suite.play import HistoryLost, Player
from star_kv_sglang.tools.eval.suite.prompts import PromptWriter
from star_kv_sglang.tools.eval.suite.questions import SuiteTask
from star_kv_sglang.tools.eval.suite.served import Reply, Shown, SuiteEngine
from star_kv_sglang.tools.eval.suite.vision import SeenScreen
from star_kv_sglang.tools.rollout.trajectory import Trajectory
from tests.eval.suite_cases import trajectory

SCREEN = SeenScreen(torch.zeros(5, 2), torch.tensor([[1, 2, 10]]))
RIGHT = {"click red A here": "x2 y2", "read x2 y2 here": "red A", "click blue B here": "x12 y12"}


class Writer:
    """Prompts as words: the questions so far and the replies to them."""

    def ids(self, of: Trajectory, replies: Sequence[str], question: str) -> list[Any]:
        turns = [
            word for turn, reply in zip(of.turns, replies, strict=False) for word in (turn.questions[0].text, reply)
        ]
        return [*turns, question]


class Engine:
    """Answers from a table, and says that it found as much as it was told to."""

    def __init__(self, recalled: str, cached: int | None = None) -> None:
        self.requests: list[tuple[list[Any], list[Shown], str, dict[str, Any]]] = []
        self._recalled = recalled
        self._cached = cached

    async def ask(self, ids: list[Any], shown: Sequence[Shown], rid: str, custom: Mapping[str, Any]) -> Reply:
        self.requests.append((ids, list(shown), rid, dict(custom)))
        found = self._cached if self._cached is not None else 100 * (len(shown) - 1)
        return Reply(RIGHT.get(ids[-1], self._recalled), found, 100 * len(shown))


def player(engine: Engine) -> Player:
    one = trajectory(7)
    return Player(
        cast(SuiteEngine, engine), cast(PromptWriter, Writer()), one, [SCREEN] * 3, 0.1, "star-10~7", traced=True
    )


def test_persistent_turns_follow_each_other_with_the_models_own_replies() -> None:
    engine = Engine("x11 y11")
    answers = asyncio.run(player(engine).persistent())
    prompts = [ids for ids, *_ in engine.requests]
    history = ["click red A here", "x2 y2", "read x2 y2 here", "red A"]
    assert prompts[:2] == [["click red A here"], ["click red A here", "x2 y2", "read x2 y2 here"]]
    assert all(prompt[:4] == history for prompt in prompts[2:])
    assert [prompt[4:] for prompt in prompts[2:]] == [
        ["recall blue B step1"],
        ["click blue B here"],
        ["recall red K step1"],
    ]
    assert [(a.task, a.right) for a in answers] == [
        (SuiteTask.CLICK, True),
        (SuiteTask.READ, True),
        (SuiteTask.MOVED, True),
        (SuiteTask.TWO_SCREENS, True),
        (SuiteTask.STILL, True),
    ]


def test_persistent_branches_share_one_conversation_and_leave_it_whole() -> None:
    engine = Engine("x11 y11")
    asyncio.run(player(engine).persistent())
    assert {shown.conversation for _, all_shown, *_ in engine.requests for shown in all_shown} == {"star-10~7"}
    customs = [custom for *_, custom in engine.requests]
    assert customs[:2] == [{"kv_budget": 0.1, "kv_trace": True}] * 2
    assert all(custom["kv_share"] for custom in customs[2:])
    assert len({rid for _, _, rid, _ in engine.requests}) == len(engine.requests)


def test_stateless_questions_share_nothing_and_have_the_right_history() -> None:
    engine = Engine("x1 y1", cached=0)
    answers = asyncio.run(player(engine).stateless())
    conversations = [{shown.conversation for shown in all_shown} for _, all_shown, *_ in engine.requests]
    assert all(len(one) == 1 for one in conversations)
    assert len({name for one in conversations for name in one}) == len(engine.requests) == 5
    assert all("kv_share" not in custom for *_, custom in engine.requests)
    assert engine.requests[-1][0][:4] == ["click red A here", "x2 y2", "read x2 y2 here", "red A"]
    assert {a.place: a.right for a in answers} == {"0.0": True, "1.0": True, "2.0": True, "2.0+": True, "2.1": True}


def test_two_screens_need_both_replies() -> None:
    """The recalled place is wrong, where the widget is now is right."""
    answers = asyncio.run(player(Engine("x60 y1", cached=0)).stateless())
    assert {a.place: a.right for a in answers if a.place.startswith("2.0")} == {"2.0": False, "2.0+": False}


def test_every_screenshot_of_every_conversation_has_its_own_hash() -> None:
    hashes = {Shown(SCREEN, name, index).hash for name in ("a", "b") for index in range(3)}
    assert len(hashes) == 6 and all(0 <= one < 2**63 for one in hashes)


def test_a_lost_history_is_an_error() -> None:
    with pytest.raises(HistoryLost, match=r"found 50 tokens of its history in the cache, not 100"):
        asyncio.run(player(Engine("x1 y1", cached=50)).persistent())


def test_a_stateless_hit_is_an_error() -> None:
    """Of a prompt of 100 tokens, 95 are text: 96 cached ones must hold a screenshot's."""
    with pytest.raises(HistoryLost, match="found 96 of its tokens"):
        asyncio.run(player(Engine("x1 y1", cached=96)).stateless())
