"""The page in a real browser: recordings, and servers that are made up."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from star_kv_sglang.introspection.service import MOST_NODES
from star_kv_sglang.tools.view.app import make_app
from star_kv_sglang.tools.view.client import Client
from star_kv_sglang.tools.view.live import LiveSource
from star_kv_sglang.tools.view.recorded import RecordedSource
from tests.view import made
from tests.view.browser import CUT_OFF, OVERLAPS, chromium, page_of

pytestmark = pytest.mark.slow

HTML = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def recorded(path: Path) -> Iterator[str]:
    with made.running(make_app(RecordedSource(path))) as url:
        yield url


@contextmanager
def live(server: str) -> Iterator[str]:
    with made.running(make_app(LiveSource(Client(server), interval_s=0.25))) as url:
        yield url


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a small recording with a screenshot and heat maps."""
    nodes = made.tree(8, 5)
    shown = [made.snapshot(nodes, at=float(at), cuts=[made.cut(at + 1, at)]) for at in range(6)]
    records: list[dict[str, Any]] = [made.as_record(shown[0], nodes[:9], full=True)]
    records += [made.as_record(one, nodes[9 * at : 9 * at + 9], full=False) for at, one in enumerate(shown) if at]
    data = base64.b64encode(made.png()).decode()
    for ident, *_, frames in nodes:
        image, start = frames[0][:2]
        records.append({"type": "frame", "node": ident, "start": start, **made.heat(ident)})
        records.append({"type": "screenshot", "image": image, "kind": "image/png", "data": data})
    path = made.write(tmp_path_factory.mktemp("run") / "a run of 8 branches.jsonl", records)
    with recorded(path) as url:
        yield url


def chosen(page: Page) -> str:
    return page.locator("#tree .row[aria-selected=true] .name").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080)])
def test_it_is_readable(browser: Browser, run: str, width: int, height: int, scheme: str) -> None:
    with page_of(browser, run, width=width, height=height, scheme=scheme) as page:
        expect(page.locator("#numbers div")).to_have_count(9)
        expect(page.locator(".frame canvas[aria-label*='kept']").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERLAPS) == []
        assert (
            page.evaluate(CUT_OFF, "#numbers b, #numbers span, #charts span, #charts b, .row .label, .row .count") == []
        )
        page.locator("summary", has_text="Nodes from the root").click()
        expect(page.locator("#detail td").first).to_be_visible()
        assert page.evaluate(
            "document.getElementById('detail').scrollWidth <= document.getElementById('detail').clientWidth"
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(json.loads(ground.replace("rgb(", "[").replace(")", "]"))) < 200) == (scheme == "dark")


def test_it_shows_what_is_in_the_tree(browser: Browser, run: str) -> None:
    with page_of(browser, run) as page:
        expect(page.locator("#numbers")).to_contain_text("8\nbranches", use_inner_text=True)
        expect(page.locator("#source")).to_have_text("a run of 8 branches.jsonl")
        rows = page.locator("#tree .row:visible")
        expect(rows).to_have_count(9)
        first = made.TEXT + made.SCREEN
        assert rows.nth(0).locator(".count").inner_text() == str(first)
        branch = (made.TEXT + 25) * 4 + first
        assert page.locator("#tree .row .count").nth(1).inner_text() == f"{branch} of {5 * first}"
        expect(page.locator("#detail dl")).to_contain_text("pruned")
        expect(page.locator("#cut-rows tr")).to_have_count(6)
        expect(page.locator("#cut-rows tr").first).to_contain_text("policy, behind its prompt")


def test_a_heat_map_follows_the_layer(browser: Browser, run: str) -> None:
    with page_of(browser, run) as page:
        kept = page.locator(".frame canvas[aria-label*='kept']").first
        expect(kept).to_have_attribute("aria-label", re.compile("kept by a layer at least"))
        expect(page.locator(".frame canvas[aria-label*='as it was sent']").first).to_be_visible()
        before = kept.evaluate("at => at.toDataURL()")
        page.get_by_label("Layer of the heat maps").fill("3")
        expect(kept).to_have_attribute("aria-label", re.compile("kept by layer 3"))
        assert kept.evaluate("at => at.toDataURL()") != before
        expect(page.locator(".controls output")).to_have_text(f"layer 3 of {made.NUM_LAYERS}")


def test_it_can_be_used_by_the_keyboard_alone(browser: Browser, run: str) -> None:
    with page_of(browser, run) as page:
        expect(page.locator("#tree .row:visible")).to_have_count(9)
        order = []
        for _ in range(9):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
            style = page.evaluate(
                "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
            )
            assert style[0] != "none" and style[1] >= 1, f"the focus is not seen on {order[-1]}"
        assert order[:6] == ["play", "time", "newest", "expand", "collapse", "tree"]
        page.locator("#tree").focus()
        walked = []
        for key in (
            "Home",
            "ArrowDown",
            "ArrowDown",
            "End",
            "ArrowUp",
            "ArrowLeft",
            "ArrowLeft",
            "ArrowRight",
            "ArrowRight",
        ):
            page.keyboard.press(key)
            walked.append(chosen(page))
        assert walked == [
            "prefix of 8 branches", "branch 2", "branch 7", "branch 37", "branch 32", "prefix of 8 branches",
            "prefix of 8 branches", "prefix of 8 branches", "branch 2",
        ]  # fmt: skip
        active = page.locator("#tree").get_attribute("aria-activedescendant")
        assert page.locator(f"#{active}").get_attribute("aria-level") == "2"
        expect(page.locator("#detail h2")).to_have_text("branch 2")


def test_the_past_can_be_seen_again(browser: Browser, run: str) -> None:
    with page_of(browser, run) as page:
        expect(page.locator("#moment")).to_contain_text("(6 of 6)")
        page.locator("#time").fill("0")
        expect(page.locator("#moment")).to_contain_text("(1 of 6)")
        expect(page.locator("#numbers")).to_contain_text("2\nbranches", use_inner_text=True)
        expect(page.locator("#cut-rows tr")).to_have_count(1)
        page.locator("#play").click()
        expect(page.locator("#moment")).to_contain_text("(6 of 6)")
        expect(page.locator("#numbers")).to_contain_text("8\nbranches", use_inner_text=True)


def test_a_thousand_branches_are_still_quick(browser: Browser, tmp_path: Path) -> None:
    path = made.growing(tmp_path / "large.jsonl", 1_000, 6, num_updates=8)
    with recorded(path) as url, page_of(browser, url) as page:
        expect(page.locator("#moment")).to_contain_text("of 9)")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        page.evaluate("performance.clearMeasures('update')")
        for index in (7, 6, 5, 8, 4):
            page.locator("#time").fill(str(index))
            expect(page.locator("#moment")).to_contain_text(f"({index + 1} of 9)")
        updates = sorted(page.evaluate("performance.getEntriesByName('update').map((entry) => entry.duration)"))
        assert page.locator("#tree .row").count() < 60, "only rows in sight are elements"
        assert paint <= 1_000
        assert updates[len(updates) // 2] <= 100
        page.locator("#tree").focus()
        page.keyboard.press("End")
        assert chosen(page) == f"branch {999 * 6 + 2}"


def test_a_recording_that_is_cut_off_says_so(browser: Browser, tmp_path: Path) -> None:
    path = made.growing(tmp_path / "run.jsonl", 3, 2, num_updates=3)
    path.write_bytes(path.read_bytes()[:-50])
    with recorded(path) as url, page_of(browser, url) as page:
        expect(page.locator("#status")).to_have_text(
            "run.jsonl is cut off or damaged in line 5; what lies before it is shown"
        )
        expect(page.locator("#moment")).to_contain_text("(3 of 3)")


def test_what_clients_sent_is_text_and_nothing_else(browser: Browser) -> None:
    nodes = made.tree(2, 2)
    fake = made.FakeServer(
        made.snapshot(
            nodes, policy={"name": HTML, "budget": 0.2, "token_budget": None}, cuts=[made.cut(1, reason=HTML)]
        )
    )
    fake.text = [HTML, None, "</pre>" + HTML]
    with fake.running() as server, live(server) as url, page_of(browser, url) as page:
        page.locator("summary", has_text="Prompt").click()
        expect(page.locator("pre.prompt")).to_have_text(f"{HTML} [screenshot 1] </pre>{HTML}")
        expect(page.locator("#numbers b").first).to_have_text(HTML)
        expect(page.locator("#cut-rows")).to_contain_text(HTML)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_the_page_goes_on_when_its_server_was_restarted(browser: Browser) -> None:
    fake = made.FakeServer(made.snapshot(made.tree(3, 2)))
    with fake.running() as server:
        port = int(server.rpartition(":")[2])
        page_server = made.running(make_app(LiveSource(Client(server), interval_s=0.25)))
        url = page_server.__enter__()
        context = page_of(browser, url)
        page = context.__enter__()
        expect(page.locator("#status")).to_have_text("following")
    expect(page.locator("#status")).to_contain_text("cannot be reached")
    fake.shown = None
    with fake.running(port):
        expect(page.locator("#status")).to_contain_text("start it with --kv-introspection tree")
        fake.shown = made.snapshot(made.tree(5, 2), started=made.START + 99)
        expect(page.locator("#status")).to_have_text("following")
        expect(page.locator("#numbers")).to_contain_text("5\nbranches", use_inner_text=True)
        context.__exit__(None, None, None)
        page_server.__exit__(None, None, None)


def test_what_is_shown_of_another_run_or_moment_is_of_that_one(browser: Browser) -> None:
    nodes = made.tree(1, 1)
    fake = made.FakeServer(made.snapshot(nodes))
    with fake.running() as server, live(server) as url, page_of(browser, url) as page:
        kept = page.locator(".frame .pair > div:last-child").first
        heat = kept.locator("canvas[aria-label*='are kept']")
        expect(page.locator("#tree .row:visible")).to_have_count(1)
        pruned = [nodes[0], [*nodes[1][:4], made.TEXT + 25, *nodes[1][5:-1], [made.frame("b0t0", 166, 25)]]]
        fake.shown = made.snapshot(pruned, at=10.0)
        expect(page.locator(".frame").first).to_contain_text("25 of 126 tokens")
        page.get_by_role("button", name="Show heat maps").click()
        page.locator("summary", has_text="Prompt").click()
        expect(heat).to_be_visible()
        expect(page.locator("pre.prompt")).to_contain_text("user")
        first = heat.get_attribute("aria-label") or ""

        fake.kept, fake.text = 1, ["another prompt"]
        fake.shown = made.snapshot(pruned, at=20.0, started=made.START + 15)
        expect(page.locator("pre.prompt")).to_have_text("another prompt")
        expect(heat).not_to_have_attribute("aria-label", first)

        num_asked = fake.asked.count("frame")
        slider, last = page.locator("#time"), "starKv.history.records.findLastIndex((one) => one.started === %f)"
        slider.fill(str(page.evaluate(last % made.START)))
        expect(page.locator("pre.prompt")).to_have_text("the server was restarted since, and has forgotten this prompt")
        expect(heat).to_have_attribute("aria-label", first)
        slider.fill("0")
        expect(kept).to_have_text("nobody looked at this heat map then")
        expect(page.locator("#detail")).to_contain_text("The server tells heat maps of now only")
        assert fake.asked.count("frame") == num_asked


def test_a_page_that_fell_behind_lists_each_cut_once(browser: Browser, run: str) -> None:
    told = """async (records) => {
      const {History} = await import("/static/state.js");
      const history = new History();
      for (const record of records) history.add(record);
      return history.cuts.map((cut) => cut[0]);
    }"""
    before, again = [made.cut(1), made.cut(2)], [made.cut(number) for number in (1, 2, 3)]
    records = [
        made.as_record(made.snapshot([], at=at, cuts=cuts, started=started), [], full=full)
        for at, cuts, started, full in (
            (0.0, before, 1.0, True), (9.0, again, 1.0, True), (10.0, [made.cut(4)], 1.0, False),
            (20.0, before, 2.0, True),
        )
    ]  # fmt: skip
    with page_of(browser, run) as page:
        assert page.evaluate(told, records) == [1, 2, 3, 4, 1, 2]


def test_the_moment_that_is_looked_at_stays_when_the_oldest_are_forgotten(browser: Browser) -> None:
    fill = """() => {
      const history = starKv.history, first = history.records[0];
      for (let at = 1; history.records.length < 3600; at++)
        history.add({...first, time: first.time + at / 1e3, full: false, nodes: [], gone: [], cuts: []});
      const slider = document.getElementById("time");
      slider.max = 3599;
      slider.value = 100;
      slider.dispatchEvent(new Event("input"));
      return history.records[100].time;
    }"""
    shown = "starKv.history.records[document.getElementById('time').value].time"
    fake = made.FakeServer(made.snapshot(made.tree(1, 1)))
    with fake.running() as server, live(server) as url, page_of(browser, url) as page:
        expect(page.locator("#tree .row:visible")).to_have_count(1)
        at = page.evaluate(fill)
        expect(page.locator("#moment")).to_have_text(re.compile(r"of 35\d\d\)"))
        assert page.evaluate(shown) == at


def test_a_tree_of_which_a_part_is_left_out_says_so(browser: Browser) -> None:
    nodes = made.tree(3_333, 3)[:MOST_NODES]
    fake = made.FakeServer(made.snapshot(nodes, num_nodes=12_345, left_out=12_345 - MOST_NODES))
    with fake.running() as server, live(server) as url, page_of(browser, url) as page:
        expect(page.locator("#notice")).to_have_text(
            "The tree has 12,345 nodes: 2,345 of them, those farthest from the root, are not shown."
        )
        assert page.evaluate(OVERLAPS) == []


def test_an_empty_tree_and_heat_maps_without_screenshots(browser: Browser) -> None:
    fake = made.FakeServer(made.snapshot([]))
    with fake.running() as server, live(server) as url, page_of(browser, url) as page:
        expect(page.locator("#tree-empty")).to_be_visible()
        fake.shown = made.snapshot(made.tree(1, 1), at=30.0)
        expect(page.locator("#tree .row:visible")).to_have_count(1)
        assert "frame" not in fake.asked, "the device is read when somebody asks for it"
        page.get_by_role("button", name="Show heat maps").click()
        expect(page.locator(".frame canvas[aria-label*='kept']").first).to_be_visible()


def test_nobody_else_reaches_the_page(browser: Browser, run: str) -> None:
    """A name that another's DNS points here is refused, and no file but the page's own is given."""
    context = browser.new_context()
    answers = [
        context.request.get(f"{run}/{path}", headers={"Host": host}).status
        for path, host in (
            ("", "evil.example"), ("static/..%2fapp.py", "127.0.0.1"), ("static/nothing.js", "127.0.0.1"),
            ("detail/tree", "127.0.0.1"), ("detail/frame?node=1", "127.0.0.1"), ("", "localhost"),
        )
    ]  # fmt: skip
    assert answers == [400, 404, 404, 404, 400, 200]
    policy = context.request.get(run).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    context.close()
