"""What was recorded is read turn by turn, and what cannot be replayed is refused with its place."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.tools.cli.tune import fingerprint
from star_kv_sglang.tools.rollout.trajectory import save_trajectories
from star_kv_sglang.tools.tune.conduct import Plan
from star_kv_sglang.tools.tune.errors import RecordingError
from star_kv_sglang.tools.tune.recordings import AGO, Turn
from star_kv_sglang.tools.tune.threads import load_threads, tasks_of
from tests.eval.suite_cases import trajectory
from tests.tune.cases import assistant, data_url, png, user


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def words(turn: Turn) -> list[list[str | None]]:
    """Roles and texts of a prompt."""
    return [
        [one.role, None if one.parts is None else " ".join(p for p in one.parts if isinstance(p, str))]
        for one in turn.said
    ]


def test_each_answer_of_a_conversation_ends_a_turn(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "1.png").write_bytes(png("red"))
    said = [
        {"role": "system", "content": "You click."},
        user("buy", "shots/1.png"),
        assistant("click(1)"),
        user("", data_url(png("blue", (80, 40))), screenshots_ago=1),
    ]
    write(tmp_path / "ticket.json", {"messages": said})
    (thread,) = load_threads(tmp_path)
    assert thread.name == "ticket"
    assert [words(turn) for turn in thread.turns] == [
        [["system", "You click."], ["user", "buy"]],
        [["system", "You click."], ["user", "buy"], ["assistant", "click(1)"], ["user", ""]],
    ]
    assert [[picture.size for picture in turn.pictures] for turn in thread.turns] == [[(64, 48)], [(64, 48), (80, 40)]]
    assert [turn.ago for turn in thread.turns] == [None, 1]
    assert base64.b64decode(thread.turns[1].pictures[0].data_url().partition(",")[2]) == png("red")


def test_where_nobody_has_answered_the_full_cache_will(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [user("one", data_url(png("red"))), user("two", data_url(png("blue")))])
    (thread,) = load_threads(tmp_path / "a.json")
    assert [words(turn) for turn in thread.turns] == [
        [["user", "one"]],
        [["user", "one"], ["assistant", None], ["user", "two"]],
    ]


def test_a_trajectory_files_first_questions_are_asked(tmp_path: Path) -> None:
    save_trajectories([trajectory(7)], tmp_path / "q.json")
    (thread,) = load_threads(tmp_path / "q.json")
    assert thread.name == "q-7"
    assert [turn.question for turn in thread.turns] == [
        "step1 click red A here", "step2 read x2 y2 here", "step3 recall blue B step1",
    ]  # fmt: skip
    assert [turn.ago for turn in thread.turns] == [0, 0, 1]


def test_a_rollouts_folder_has_its_conversations_in_one_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "rollout.json", {"format": "not a conversation"})
    write(tmp_path / "conversations" / "task" / "0.json", [user("go", data_url(png()))])
    assert [thread.name for thread in load_threads(tmp_path)] == ["conversations/task/0"]


def line(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages)}


def requests(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_requests_go_on_from_the_longest_one_that_they_begin_with(tmp_path: Path) -> None:
    """Two branches of one task, asked in turns: each is a thread, and their common request counts once."""
    root = [user("buy", data_url(png("red")))]
    left = [*root, assistant("a"), user("", data_url(png("green")))]
    right = [*root, assistant("b"), user("", data_url(png("blue")))]
    further = [*left, assistant("c"), user("", data_url(png("black")))]
    path = requests(
        tmp_path, line(*root), line(*left), {"body": line(*right)}, line(*root), {"request": line(*further)}
    )
    threads = load_threads(path)
    assert [[len(turn.said) for turn in thread.turns] for thread in threads] == [[1, 3], [1, 3, 5]]
    assert [[turn.scored for turn in thread.turns] for thread in threads] == [[True, True], [False, True, True]]
    assert threads[0].turns[1].said[1].parts == ("b",)


def test_an_agent_that_takes_old_screenshots_out_is_followed_by_its_first_words(tmp_path: Path) -> None:
    first = line(user("buy", data_url(png("red"))))
    second = line(user("buy"), assistant("a"), user("", data_url(png("blue"))))
    other = line(user("sell", data_url(png("red"))))
    threads = load_threads(requests(tmp_path, first, other, second))
    assert [[turn.question for turn in thread.turns] for thread in threads] == [["sell"], ["buy", ""]]


def test_threads_that_begin_with_one_prompt_are_of_one_task(tmp_path: Path) -> None:
    start, other = user("buy", data_url(png("red"))), user("sell", data_url(png("red")))
    later = [user("", data_url(png(colour))) for colour in ("blue", "green")]
    for name, first, then in (("a", start, later[0]), ("b", start, later[1]), ("c", other, later[0])):
        write(tmp_path / f"{name}.json", [first, assistant("click(1)"), then])
    assert tasks_of(load_threads(tmp_path)) == {"a": "a", "b": "a", "c": "c"}


@pytest.mark.parametrize("changed", ["system", "answer", "screenshot"])
def test_a_run_does_not_go_on_with_other_recordings(tmp_path: Path, changed: str) -> None:
    """Words before the last question count too."""

    def recorded(folder: Path, *, system: str = "You click.", answer: str = "click(1)", colour: str = "red") -> str:
        said = [{"role": "system", "content": system}, user("buy", data_url(png(colour))), assistant(answer)]
        write(folder / "a.json", [*said, user("", data_url(png("blue")))])
        return fingerprint(Plan("m", tuple(load_threads(folder)), (), (), control=False, arguments=(), timeout_s=1))

    other = {"system": {"system": "You type."}, "answer": {"answer": "click(2)"}, "screenshot": {"colour": "green"}}
    assert recorded(tmp_path / "one") == recorded(tmp_path / "same")
    assert recorded(tmp_path / "one") != recorded(tmp_path / "other", **other[changed])


def test_only_so_many_threads(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.json", [user(name, data_url(png()))])
    assert [thread.name for thread in load_threads(tmp_path, 2)] == ["a", "b"]


WRONG: list[tuple[Any, str]] = [
    ("{", "a.json: the conversation: is no JSON"),
    ([], "holds no chat messages; expected a list"),
    ({"turns": 3}, "holds no chat messages; expected a list"),
    ([{"role": "robot", "content": "x"}], "message 1: must be an object whose 'role' is one of system"),
    ([{"role": "user", "content": 7}], "message 1: 'content' must be a text or a list of parts"),
    ([user("hello")], "shows no screenshot; there is nothing"),
    ([user("x", "nowhere.png")], "nowhere.png cannot be read (No such file or directory); paths count from the file"),
    ([user("x", "http://host/a.png")], "is at http://host/a.png, and nothing is downloaded here; put it beside"),
    ([user("x", "data:image/png,abc")], "the data URL is not of the form data:image/png;base64,..."),
    ([user("x", "data:image/png;base64,!!")], "the data URL is no base64"),
    ([user("x", data_url(b"no picture"))], "the data URL is no image that can be read"),
    ([user("x", data_url(png()[:60]))], "is no image that can be read"),
    ([{"role": "user", "content": [{"type": "audio"}]}], "message 1, part 1: is neither text nor an image"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "names no image; expected a data URL or a path"),
    ([user("x", data_url(png()), **{AGO: -1})], "'screenshots_ago' must be a whole number"),
]


@pytest.mark.parametrize(("content", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_what_cannot_be_replayed_is_refused_with_its_place(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(RecordingError) as caught:
        load_threads(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_folders_without_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"does not exist; give a folder"):
        load_threads(tmp_path / "none")
    with pytest.raises(RecordingError, match=r"holds no \.json and no \.jsonl file"):
        load_threads(tmp_path)
    with pytest.raises(RecordingError, match=r"line 2: must be a request's body"):
        load_threads(requests(tmp_path, line(user("a", data_url(png()))), ["x"]))  # type: ignore[arg-type]
    with pytest.raises(RecordingError, match=r"none of its requests shows a screenshot"):
        load_threads(requests(tmp_path, line(user("a"))))
