"""The policy's numbers on a real server: the Prometheus page, ``/server_info`` and every response tell the same."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from star_kv_sglang import cpu_mode
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.metrics.publisher import counter_name
from tests.engine.conversation import Chat, question, screenshot
from tests.engine.preloaded_server import preloaded_serving
from tests.models.checkpoints import make_qwen2_5_vl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_mode.is_gpu_present(), reason="CPU mode is never used on a GPU machine"),
]

COLS, ROWS = 6, 6
NUM_VISUAL = COLS * ROWS
KEPT = 8
SECRET = "salt-of-a-tenant"
LABELS = {"model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with metrics, after two turns of one branch, and one under a salt."""
    folder = tmp_path_factory.mktemp("metrics")
    model = make_qwen2_5_vl(folder / "model")
    flags = ["--model-path", str(model), "--max-total-tokens", "2000", "--kv-policy", "star-paper", "--enable-metrics"]
    with (
        preloaded_serving([*flags, "--kv-budget", "0.2", "--skip-server-warmup"], folder / "server.log") as url,
        httpx.Client(base_url=url, timeout=120, follow_redirects=True) as client,
    ):
        yield client


def turn(chat: Chat, seed: int) -> Chat:
    """The conversation with another screenshot and question."""
    return chat.ask(question(seed), screenshot(seed, COLS, ROWS, 28))


def flush(client: httpx.Client) -> None:
    """Empty the tree; the last request leaves the scheduler a step after its answer."""
    client.post("/flush_cache", params={"timeout": 30}).raise_for_status()


def generate(client: httpx.Client, chat: Chat, **options: Any) -> dict[str, Any]:
    """One answer of four tokens from ``/generate``."""
    images = []
    for picture in chat.images:
        png = io.BytesIO()
        picture.save(png, "PNG")
        images.append("data:image/png;base64," + base64.b64encode(png.getvalue()).decode())
    sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    body = {"text": chat.text, "image_data": images or None, "sampling_params": sampling, **options}
    answer = client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def scraped(client: httpx.Client) -> dict[str, list[Any]]:
    """Samples of the policy's metrics, by the sample's name."""
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("star_kv:"):
                samples.setdefault(sample.name, []).append(sample)
    return samples


def info(client: httpx.Client) -> dict[str, Any]:
    """The policy's report."""
    report: dict[str, Any] = client.get("/server_info").json()["internal_states"][0]["star_kv"]
    return report


def test_page_and_server_info_tell_the_same(client: httpx.Client) -> None:
    chat = turn(Chat(), 1)
    first = generate(client, chat)
    generate(client, turn(chat.reply(first["text"]), 2))
    report, samples = info(client), scraped(client)

    def value(name: str) -> float:
        (sample,) = samples[name]
        return float(sample.value)

    assert report["num_prunes"] >= 2
    for field in fields(PolicyCounters):
        if field.name.startswith("num_"):
            assert value(counter_name(field.name)) == report[field.name], field.name
    for name in ("live", "shared", "private"):
        assert value(f"star_kv:{name}_tokens") == report[f"num_{name}_tokens"], name
    assert value("star_kv:peak_private_tokens") == report["peak_private_tokens"]
    sums = {s.labels["age"]: s.value for s in samples["star_kv:kept_fraction_sum"]}
    counts = {s.labels["age"]: s.value for s in samples["star_kv:kept_fraction_count"]}
    means = {age: sums[age] / count for age, count in counts.items() if count}
    assert means == pytest.approx(report["mean_kept_fraction_by_age"])
    stages = {s.labels["stage"]: s.value for s in samples["star_kv:stage_seconds_count"]}
    assert stages == {name: total["count"] for name, total in report["stages"].items()}
    assert {"window_scores", "fuse", "select", "prune"} <= set(stages)
    assert all(0 < total["seconds"] < 60 for total in report["stages"].values())


def test_every_response_tells_what_it_holds(client: httpx.Client) -> None:
    flush(client)
    first = turn(Chat(), 11)
    answer = generate(client, first)
    prompt_len = answer["meta_info"]["prompt_tokens"]
    pruned = NUM_VISUAL - KEPT
    assert answer["meta_info"]["star_kv"] == [{"live": prompt_len - pruned, "pruned": pruned, "shared": 0, "cuts": 0}]
    second = generate(client, turn(first.reply(answer["text"]), 12))
    (use,) = second["meta_info"]["star_kv"]
    assert use["live"] + use["pruned"] == second["meta_info"]["prompt_tokens"]
    assert use["pruned"] == 2 * NUM_VISUAL - 15
    flush(client)
    text = generate(client, Chat().ask(question(5)))
    (use,) = text["meta_info"]["star_kv"]
    assert use == {"live": text["meta_info"]["prompt_tokens"], "pruned": 0, "shared": 0, "cuts": 0}


def test_what_a_request_shares_is_told(client: httpx.Client) -> None:
    flush(client)
    first = turn(Chat(), 21)
    answer = generate(client, first, sampling_params={"max_new_tokens": 4, "custom_params": {"kv_share": True}})
    (use,) = answer["meta_info"]["star_kv"]
    assert use == {"live": answer["meta_info"]["prompt_tokens"], "pruned": 0, "shared": use["live"], "cuts": 0}


def test_streams_and_chat_completions_tell_it_too(client: httpx.Client) -> None:
    png = io.BytesIO()
    screenshot(31, COLS, ROWS, 28).save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "click red K here"}]
    body = {"model": "default", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    chat = client.post("/v1/chat/completions", json={**body, "return_meta_info": True}).json()
    (use,) = chat["choices"][0]["meta_info"]["star_kv"]
    assert use["pruned"] == NUM_VISUAL - KEPT


def test_labels_tell_nothing_of_a_request(client: httpx.Client) -> None:
    generate(client, turn(Chat(), 41), extra_key=SECRET)
    page = client.get("/metrics").text
    assert SECRET not in page
    assert SECRET not in client.get("/server_info").text
    for name, samples in scraped(client).items():
        for sample in samples:
            known = {"model_name"} if name.startswith("star_kv:image_") else LABELS
            assert set(sample.labels) - {"age", "stage", "le", "pid"} == known, sample


def test_a_screenshot_that_is_sent_again_is_told_as_a_hit(client: httpx.Client) -> None:
    before = scraped(client)
    chat = turn(Chat(), 51)
    generate(client, turn(chat.reply(generate(client, chat)["text"]), 52))
    after = scraped(client)

    def more(name: str) -> float:
        new, old = (sum(s.value for s in page.get(f"star_kv:image_{name}_total", [])) for page in (after, before))
        return float(new - old)

    assert (more("cache_misses"), more("cache_hits")) == (2, 1)
    assert (more("features_moved"), more("features_not_moved"), more("features_sent")) == (2, 0, 3)
    assert more("features_unsent_bytes") > 0
    assert sum(sample.value for sample in after["star_kv:image_cache_bytes"]) > 0
