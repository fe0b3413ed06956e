"""Without a browser: what is recorded, what cannot be shown, and why a server cannot be watched."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from star_kv_sglang.tools.view.app import listen
from star_kv_sglang.tools.view.client import Client, UnreachableError
from star_kv_sglang.tools.view.errors import ViewError
from star_kv_sglang.tools.view.live import LiveSource
from star_kv_sglang.tools.view.recording import Recorder, Recording
from star_kv_sglang.tools.view.snapshot import Differ
from tests.star_kv import star_kv
from tests.view import made


def rows(record: dict[str, Any]) -> list[int]:
    return [row[0] for row in record["nodes"]]


def test_the_first_snapshot_is_whole_and_the_next_ones_say_what_is_new() -> None:
    nodes, differ = made.tree(2, 2), Differ()
    first = differ.record(made.snapshot(nodes, cuts=[made.cut(1)]))
    assert first["full"] and rows(first) == [1, 2, 3, 4, 5] and len(first["cuts"]) == 1
    older = [[*node[:8], node[8] + 1.2, node[9]] for node in nodes]
    same = differ.record(made.snapshot(older, at=1.0, cuts=[made.cut(1)]))
    assert not same["full"] and same["nodes"] == same["gone"] == same["cuts"] == [], "time alone changes nothing"
    nodes[2][4] -= 5
    changed = differ.record(made.snapshot(nodes[:-1], at=1.5, cuts=[made.cut(1), made.cut(2)]))
    assert rows(changed) == [3] and changed["gone"] == [5] and [cut[0] for cut in changed["cuts"]] == [2]
    assert rows(differ.whole()) == [1, 2, 3, 4]


def test_a_restarted_server_begins_anew() -> None:
    differ = Differ()
    differ.record(made.snapshot(made.tree(2, 2), cuts=[made.cut(9)]))
    record = differ.record(made.snapshot(made.tree(1, 1), started=made.START + 60, cuts=[made.cut(1)]))
    assert record["full"] and rows(record) == [1, 2] and len(record["cuts"]) == 1


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    recorder, differ = Recorder(tmp_path / "run.jsonl"), Differ()
    record = differ.record(made.snapshot(made.tree(2, 2)))
    recorder.write(record)
    recorder.write({"type": "frame", "node": 2, "start": 20, **made.heat(1)})
    recorder.write(differ.record(made.snapshot(made.tree(2, 2), at=5.0)))
    recorder.write({"type": "frame", "node": 2, "start": 20, **made.heat(2)})
    recorder.close()
    read = Recording(tmp_path / "run.jsonl")
    assert read.problem is None and read.records[0] == record and len(read.records) == 2
    query = {"node": "2", "start": "20"}
    assert [(read.detail("frame", query, made.START + at) or {})["kept"] for at in (1.0, 9.0)] == [
        made.heat(1)["kept"], made.heat(2)["kept"],
    ]  # fmt: skip
    assert read.detail("frame", {"node": "3", "start": "20"}, 0.0) is None


def test_what_was_looked_at_belongs_to_its_start_of_the_server(tmp_path: Path) -> None:
    """Nodes are numbered anew with each start."""
    path, nodes = tmp_path / "run.jsonl", made.tree(1, 1)
    text = {"type": "text", "node": 2, "is_cut": False}
    made.write(
        path,
        [
            made.as_record(made.snapshot(nodes), nodes, full=True),
            {"type": "frame", "node": 2, "start": 166, **made.heat(1)},
            {**text, "runs": ["first"]},
            made.as_record(made.snapshot(nodes, at=60.0, started=made.START + 50), nodes, full=True),
            {**text, "runs": ["second"]},
        ],
    )
    read = Recording(path)
    told = [read.detail("text", {"node": "2"}, made.START + at) or {} for at in (-5.0, 5.0, 65.0)]
    assert [one["runs"] for one in told] == [["first"], ["first"], ["second"]]
    frame = {"node": "2", "start": "166"}
    assert read.detail("frame", frame, made.START + 5) and read.detail("frame", frame, made.START + 65) is None


def test_a_recording_that_is_cut_off_is_shown_up_to_there(tmp_path: Path) -> None:
    path = made.growing(tmp_path / "run.jsonl", 2, 2, num_updates=3)
    path.write_bytes(path.read_bytes()[:-100])
    read = Recording(path)
    assert len(read.records) == 3 and read.problem == (
        "run.jsonl is cut off or damaged in line 5; what lies before it is shown"
    )


def no_header(path: Path) -> None:
    path.write_text('{"some": "json"}\n', encoding="utf-8")


def other_version(path: Path) -> None:
    made.write(path, [], version=7, star_kv="9.9")


def other_fields(path: Path) -> None:
    made.write(path, [], node_fields=["id"], star_kv="0.0.9")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b""), "is no recording of"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe"), "is no recording of"),
        (lambda path: path.write_bytes(b"[1, 2]\n"), "is no recording of"),
        (no_header, "is no recording of"),
        (other_version, "was recorded by star-kv 9.9 in version 7 of the format; this star-kv reads version 1"),
        (other_fields, "was recorded by star-kv 0.0.9"),
        (lambda path: made.write(path, []), "ends before the first"),
        (lambda path: made.write(path, [{"type": "tree", "nodes": []}]), "ends before the first"),
        (lambda path: made.write(path, [{"type": "text", "node": 1, "runs": []}]), "ends before the first"),
    ],
    ids=["missing", "empty", "binary", "list", "not ours", "version", "fields", "no tree", "no numbers", "text alone"],
)
def test_a_file_that_cannot_be_shown_is_told_in_a_line(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "run.jsonl")
    answer = star_kv(["view", str(tmp_path / "run.jsonl")])
    assert answer.exit_code == 2 and answer.output.startswith("error: ") and answer.output.count("\n") == 1
    assert words in answer.output and "run.jsonl" in answer.output


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(ViewError, match="is there already"):
        Recorder(tmp_path / "run.jsonl")
    with pytest.raises(ViewError, match="cannot be written"):
        Recorder(tmp_path / "no" / "run.jsonl")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give a FILE, or --live URL"),
        (["run.jsonl", "--live", "http://127.0.0.1:1"], "give a FILE, or --live URL"),
        (["run.jsonl", "--record", "x"], "need --live"),
        (["--live", "http://127.0.0.1:1", "--record-frames"], "needs --record"),
        (["trace.npz"], "--image"),
        (["--live", "ftp://127.0.0.1"], "must begin with http://"),
        (["--live", "127.0.0.1:30000"], "must begin with http://"),
        (["--live", "http://[::1"], "is no address"),
    ],
)
def test_a_wrong_command_is_told_what_it_needs(words: list[str], told: str) -> None:
    answer = star_kv(["view", *words])
    assert answer.exit_code == 2 and told in " ".join(answer.output.replace("│", " ").split())


def test_a_port_that_is_taken_is_told() -> None:
    taken = listen("127.0.0.1", 0)
    with pytest.raises(ViewError, match="give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()


@pytest.fixture(scope="module")
def server() -> Any:
    server = made.FakeServer()
    with server.running() as url:
        yield server, url


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"info": None}, "is no server of SGLang"),
        ({"info": {"model_path": "m"}}, "is SGLang without star-kv"),
        ({"info": {"kv_policy": "full"}}, "runs without a policy: start it with --kv-policy star"),
        ({"info": {"kv_policy": "star"}}, "runs an older star-kv"),
        ({"info": {"kv_policy": "star", "kv_introspection": "off"}}, "start it with --kv-introspection tree"),
        ({"key": "secret"}, "asks for its key: give --api-key"),
        ({"shown": {"hello": 1}}, "but not as star-kv does"),
        ({"shown": made.snapshot([], protocol=9, star_kv="9.9")}, "runs star-kv 9.9, whose tree is told in version 9"),
        ({"shown": made.snapshot([], node_fields=["id"])}, "use the star-kv that the server has"),
    ],
    ids=["other", "stock", "full", "older", "off", "key", "no star-kv", "version", "fields"],
)
def test_why_a_server_cannot_be_watched_is_told_on_the_terminal(
    server: tuple[made.FakeServer, str], changes: dict[str, Any], told: str
) -> None:
    fake, url = server
    vars(fake).update({"shown": None, "key": None, "info": {"kv_policy": "star"}, **changes})
    answer = star_kv(["view", "--live", url])
    assert answer.exit_code == 2 and answer.output.count("\n") == 1
    assert answer.output.startswith(f"error: {url} ") and told in answer.output


def test_an_answer_that_cannot_be_read_is_told_and_the_watch_goes_on(server: tuple[made.FakeServer, str]) -> None:
    fake, url = server
    broken = {key: value for key, value in made.snapshot([]).items() if key != "totals"}
    vars(fake).update({"shown": broken, "key": None, "status": 200})

    async def watch() -> list[str]:
        source = LiveSource(Client(url), interval_s=0.01)
        task = asyncio.create_task(source.follow())
        states = []
        async for record in source.records():
            if record["type"] == "status":
                states.append(record["state"])
                fake.shown = made.snapshot([]) if record["state"] == "refused" else fake.shown
                if record["state"] == "following":
                    break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return states

    assert asyncio.run(watch()) == ["waiting", "refused", "following"]


def test_a_page_that_sleeps_gets_the_state_of_when_it_wakes_up() -> None:
    async def watch() -> list[dict[str, Any]]:
        source = LiveSource(Client("http://127.0.0.1:9"), interval_s=1.0)
        page = source.records()
        told = [await anext(page) for _ in range(3)]
        for number in range(500):
            source._take(made.snapshot(made.tree(1, 1), at=float(number)))
        assert all(queue.qsize() < 100 for queue in source._pages)
        while told[-1]["type"] != "tree" or told[-1]["time"] < made.START + 499:
            told.append(await asyncio.wait_for(anext(page), 5))
        source.end()
        return told

    told = asyncio.run(watch())
    assert [record["type"] for record in told[:3]] == ["header", "past", "status"] and len(told) < 150
    whole = max(number for number, record in enumerate(told) if record.get("full"))
    assert rows(told[whole]) == [1, 2] and all(not record.get("full") for record in told[whole + 1 :])


def test_a_recording_that_cannot_go_on_is_told_and_the_watch_goes_on(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")

    def full(record: object) -> None:
        raise OSError(28, "No space left on device")

    recorder.write = full  # type: ignore[method-assign]
    source = LiveSource(Client("http://127.0.0.1:9"), interval_s=1.0, recorder=recorder)
    for at in (0.0, 1.0):
        source._take(made.snapshot(made.tree(1, 1), at=at))
    assert source._now()[-1]["text"] == "following, but the recording has ended: No space left on device"
    recorder.close()


def test_a_key_is_sent_and_nobody_who_does_not_answer_is_an_error(server: tuple[made.FakeServer, str]) -> None:
    fake, url = server
    vars(fake).update({"shown": made.snapshot(made.tree(1, 1)), "key": "secret", "status": 200})

    async def look() -> None:
        client = Client(url, "secret")
        assert len((await client.snapshot())["nodes"]) == 2
        fake.status = 503
        with pytest.raises(UnreachableError, match="answers 503"):
            await client.snapshot()
        fake.status = 200
        await client.close()
        gone = Client("http://127.0.0.1:9")
        assert "cannot be reached" in (await LiveSource(gone, interval_s=1.0).first() or "")
        await gone.close()

    asyncio.run(look())


def test_a_recording_with_frames_has_each_heat_map_and_screenshot_once(
    server: tuple[made.FakeServer, str], tmp_path: Path
) -> None:
    fake, url = server
    vars(fake).update({"shown": made.snapshot(made.tree(1, 2)), "key": None, "status": 200})
    recorder = Recorder(tmp_path / "run.jsonl")
    source = LiveSource(Client(url), interval_s=0.01, recorder=recorder, with_frames=True)

    async def watch() -> None:
        task = asyncio.create_task(source.follow())
        while fake.asked.count("tree") < 4:
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    fake.asked.clear()
    asyncio.run(watch())
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds[:3] == ["header", "status", "tree"] and kinds.count("frame") == kinds.count("screenshot") == 3
    assert Recording(tmp_path / "run.jsonl").picture("b0t1") == made.png()


def test_a_recording_with_frames_asks_again_for_what_failed(
    server: tuple[made.FakeServer, str], tmp_path: Path
) -> None:
    fake, url = server
    vars(fake).update({"shown": made.snapshot(made.tree(4, 3)), "key": None, "status": 200})
    recorder = Recorder(tmp_path / "run.jsonl")

    async def turns(shows: str) -> list[tuple[int, int]]:
        source = LiveSource(Client(url), interval_s=1.0, recorder=recorder, with_frames=True)
        source._take({**made.snapshot(made.tree(4, 3)), "shows": shows})
        asked = []
        for fake.failing in ({"frame"}, {"screenshot"}, set(), set(), set()):
            fake.asked.clear()
            await source._record_frames()
            asked.append((fake.asked.count("frame"), fake.asked.count("screenshot")))
        await source._client.close()
        return asked

    # Of 13, 8 a turn: those that failed come behind those that were not asked for.
    assert asyncio.run(turns("content")) == [(8, 0), (8, 8), (5, 8), (0, 5), (0, 0)]
    assert asyncio.run(turns("tree")) == [(8, 0), (8, 0), (5, 0), (0, 0), (0, 0)]
    recorder.close()
    fake.failing = set()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    kinds = [line["type"] for line in lines]
    assert (kinds.count("frame"), kinds.count("screenshot")) == (2 * 13, 13)


def test_ctrl_c_ends_it_in_silence_though_a_page_is_open(server: tuple[made.FakeServer, str]) -> None:
    fake, url = server
    vars(fake).update({"shown": made.snapshot(made.tree(1, 1)), "key": None, "status": 200})
    command = [
        sys.executable,
        "-c",
        "import sys; from star_kv_sglang.cli.main import main; sys.exit(main())",
        "view",
        "--live",
        url,
    ]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as viewer:
        try:
            assert viewer.stdout is not None
            told = next(line for line in viewer.stdout if line.startswith("Showing"))
            address = told.split(" at ")[1].split()[0]
            with httpx.stream("GET", f"{address}/records", timeout=30) as page:
                lines = page.iter_lines()
                assert json.loads(next(lines))["type"] == "header"
                viewer.send_signal(signal.SIGINT)
                assert all(json.loads(line) for line in lines)
            assert (viewer.wait(20), viewer.stdout.read()) == (0, "")
        finally:
            viewer.kill()
