"""The side of the process that answers clients: pieces become a snapshot, wrong questions a clear line."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from star_kv_sglang import compat
from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.introspection import protocol
from star_kv_sglang.introspection.screenshots import Screenshots, flat
from star_kv_sglang.introspection.service import MOST_NODES, Introspection

PNG = b"\x89PNG\r\n\x1a\n" + bytes(5_000)


class Scheduler:
    """Answers as the scheduler does; `questions` are those that came.

    Args:
        num_nodes: Of its tree, each with a screenshot.
        piece: Nodes of a piece.
        answers: By what is asked, instead of its own.
    """

    def __init__(self, num_nodes: int = 3, piece: int = 2, **answers: dict[str, Any]) -> None:
        self.num_nodes, self.piece, self.answers = num_nodes, piece, answers
        self.questions: list[Mapping[str, Any]] = []
        self.spent_us = 100
        self._told = 0

    async def ask(self, question: str) -> Mapping[str, Any]:
        asked = protocol.asked(question)
        assert asked is not None
        self.questions.append(asked)
        await asyncio.sleep(0)
        if asked["ask"] in self.answers:
            return self.answers[asked["ask"]]
        if asked["ask"] == "walk":
            self._told = 0
        idents = range(self._told, min(self.num_nodes, self._told + self.piece))
        self._told = idents.stop
        nodes = [[i + 1, i, i * 10, 10, 5, 0, 0, 1, 0.5, [["beef", 0, 2, 3, 0, 6, 3]]] for i in idents]
        told = {"nodes": nodes, "is_over": self._told == self.num_nodes, "is_torn": False, "spent_us": self.spent_us}
        if asked["ask"] == "piece":
            return told
        after = asked["cuts_after"]
        cuts = (
            []
            if after >= 1
            else [(1, 5.0, protocol.PROMPT, 1, 0xBEEF, 0, 3, 3), (2, 5.0, "short_pool", 2, None, None, 9, 0)]
        )
        return {**told, "policy": {}, "totals": {}, "num_nodes": self.num_nodes, "cuts": cuts}


def service(scheduler: Scheduler, mode: str = protocol.CONTENT) -> Introspection:
    return Introspection(scheduler.ask, mode, decode=lambda ids: "".join(map(chr, ids)), images=lambda: None)


def get(of: Introspection, path: str, **query: str) -> tuple[int, Any]:
    reply = asyncio.run(of.reply(path, query))
    return reply.status, reply.body


def test_pieces_become_one_snapshot() -> None:
    scheduler = Scheduler(5)
    status, body = get(service(scheduler), "tree")
    assert status == 200 and json.loads(json.dumps(body))["protocol"] == protocol.VERSION
    assert [node[0] for node in body["nodes"]] == [1, 2, 3, 4, 5]
    assert body["scheduler"] == {"pieces": 3, "spent_us": 300, "longest_us": 100}
    assert (body["num_nodes"], body["left_out"], body["is_torn"]) == (5, 0, False)
    assert [question["ask"] for question in scheduler.questions] == ["walk", "piece", "piece"]


def test_a_screenshots_hash_is_nobodys_to_read() -> None:
    _, body = get(service(Scheduler(), protocol.TREE), "tree")
    assert "beef" not in json.dumps(body)
    assert {node[-1][0][0] for node in body["nodes"]} == {body["cuts"][0][4]}
    assert body["cuts"][1][4] is None


def test_a_tree_that_is_too_large_is_cut_and_the_rest_is_counted() -> None:
    _, body = get(service(Scheduler(MOST_NODES + 300, piece=1_000)), "tree")
    assert (len(body["nodes"]), body["left_out"], body["num_nodes"]) == (MOST_NODES, 300, MOST_NODES + 300)


def test_many_who_look_cost_as_much_as_one_and_the_more_it_costs_the_rarer_it_is() -> None:
    scheduler = Scheduler(2)
    scheduler.spent_us = 60_000_000
    shown = service(scheduler)

    async def look() -> list[Any]:
        return await asyncio.gather(*(shown.reply("tree", {}) for _ in range(20)))

    replies = asyncio.run(look())
    assert {reply.status for reply in replies} == {200} and len(scheduler.questions) == 1
    assert get(shown, "tree")[0] == 200 and len(scheduler.questions) == 1


def test_who_waits_too_long_is_told_instead_of_queued() -> None:
    scheduler = Scheduler()

    async def never(question: str) -> Any:
        await asyncio.sleep(0.2)
        return await scheduler.ask(question)

    async def look() -> list[Any]:
        shown = Introspection(never, protocol.TREE, decode=str, images=lambda: None)
        return await asyncio.gather(*(shown.reply("tree", {}) for _ in range(40)))

    assert sorted(reply.status for reply in asyncio.run(look())) == [200] * 32 + [503] * 8


@pytest.mark.parametrize(
    ("path", "query", "answers", "status", "words"),
    [
        ("frame", {"node": "1"}, {}, 400, "start must be a whole number"),
        ("frame", {"node": "1; drop", "start": "-1"}, {}, 400, "node, start must be"),
        ("frame", {"node": "1", "start": "0"}, {"frame": {"gone": True}}, 404, "is gone"),
        ("text", {"node": "1"}, {"text": {"failed": "KeyError: 1"}}, 500, "KeyError: 1"),
        ("screenshot", {"image": "unknown"}, {}, 404, "is not held"),
    ],
)
def test_a_wrong_question_has_a_clear_answer(
    path: str, query: dict[str, str], answers: dict[str, Any], status: int, words: str
) -> None:
    told, body = get(service(Scheduler(**answers)), path, **query)
    assert told == status and words in body["error"]["message"]


@pytest.mark.parametrize("path", ["text", "screenshot"])
def test_what_clients_sent_is_shown_only_where_it_was_asked_for(path: str) -> None:
    scheduler = Scheduler(text={"runs": [[65]], "is_cut": False})
    status, body = get(service(scheduler, protocol.TREE), path, node="1", image="x")
    assert status == 403 and "--kv-introspection content" in body["error"]["message"] and not scheduler.questions


def test_a_text_is_decoded_run_by_run() -> None:
    status, body = get(service(Scheduler(text={"runs": [[72, 105], None, [33]], "is_cut": False})), "text", node="1")
    assert (status, body["runs"]) == (200, ["Hi", None, "!"])


def test_a_screenshot_comes_back_as_it_was_sent() -> None:
    shown = service(Scheduler())
    shown.screenshots.note(["data:image/png;base64," + base64.b64encode(PNG).decode()], ["beef"])
    _, body = get(shown, "tree")
    assert get(shown, "screenshot", image=body["nodes"][0][-1][0][0]) == (200, PNG)


def test_what_is_no_picture_is_not_shown_as_one() -> None:
    """A browser never gets bytes that a client called an image, such as a page with a script."""
    held = Screenshots()
    page = base64.b64encode(b"<svg onload=alert(1)>" * 300).decode()
    held.note(
        [f"data:image/svg+xml;base64,{page}", "https://host/x.png", "/tmp/x.png", "data:image/png;base64,@@", PNG],
        "abcde",
    )
    assert [held.get(name) for name in "abcdef"] == [None, None, None, None, PNG, None]


def test_screenshots_are_bounded_and_the_oldest_go() -> None:
    held = Screenshots(most_bytes=2 * len(PNG))
    for name in ("a", "b", "a", "c"):
        held.note([PNG], [name])
    assert [held.get(name) is not None for name in "abc"] == [True, False, True]


def test_a_screenshot_that_comes_by_its_digest_is_in_use() -> None:
    held = Screenshots(most_bytes=2 * len(PNG))
    for source, name in ((PNG, "a"), (PNG, "b"), ("sha256:" + 64 * "0", "a"), ("sha256:" + 64 * "1", "x"), (PNG, "c")):
        held.note([source], [name])
    assert [held.get(name) is not None for name in "abcx"] == [True, False, True, False]


def test_images_of_a_request_are_flat() -> None:
    assert flat(None) == [] and flat("a") == ["a"] and flat([["a", "b"], "c"]) == ["a", "b", "c"]


def test_other_names_of_requests_are_no_questions() -> None:
    assert protocol.asked(None) is None and protocol.asked("star_kv") is None
    assert protocol.asked(protocol.question(ask="walk", cuts_after=3)) == {"ask": "walk", "cuts_after": 3}


def config(policy: str, introspection: str) -> PolicyConfig:
    return PolicyConfig.from_flags(
        policy=policy, budget=None, token_budget=None, observation_window=None, policy_config=None,
        introspection=introspection,
    )  # fmt: skip


def test_the_flag_needs_a_policy_and_one_of_its_words() -> None:
    assert config("star", "tree").introspection == "tree"
    with pytest.raises(ConfigError, match="--kv-introspection 'all' must be one of off, tree, content"):
        config("star", "all")
    with pytest.raises(
        ConfigError, match="--kv-introspection tree shows a policy's tree, and --kv-policy full has none"
    ):
        config("full", "tree")
    with pytest.raises(ConfigError, match="introspection"):
        PolicyConfig.from_flags(
            policy="star", budget=None, token_budget=None, observation_window=None,
            policy_config='{"introspection": "content"}',
        )  # fmt: skip


def test_it_is_refused_where_nobody_would_be_asked_for_a_key_and_where_there_are_several_trees() -> None:
    assert compat.reasons_against_introspection(SimpleNamespace(tokenizer_worker_num=1, dp_size=1)) == []
    reasons = compat.reasons_against_introspection(SimpleNamespace(tokenizer_worker_num=2, dp_size=2))
    assert ["use one worker" in reasons[0], "use 1" in reasons[1]] == [True, True]
