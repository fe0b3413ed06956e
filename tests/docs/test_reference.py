"""What the pages list is what the code has: flags, keys, fields, metrics, refusals, figures, commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from star_kv_sglang.compat import FLAG_RULES, SUPPORTED_SGLANG
from star_kv_sglang.engine.stats import PolicyCounters
from star_kv_sglang.images.telemetry import CACHE_COUNTERS, FEATURE_COUNTERS, REFERENCE_COUNTERS
from star_kv_sglang.images.telemetry import GAUGES as IMAGE_GAUGES
from star_kv_sglang.images.telemetry import PREFIX as IMAGE_PREFIX
from star_kv_sglang.metrics.publisher import GAUGES, PREFIX, counter_name
from star_kv_sglang.policies import policy_keys, policy_names
from tests.architecture.imports import ROOT
from tests.docs.scripts import script

docs_commands, docs_figures, docs_parts = (script(name) for name in ("docs_commands", "docs_figures", "docs_parts"))
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def metrics() -> set[str]:
    """Every metric of ours; a histogram by its own name."""
    of_images = {f"{IMAGE_PREFIX}{name}_total" for name in {**CACHE_COUNTERS, **FEATURE_COUNTERS, **REFERENCE_COUNTERS}}
    counted = {counter_name(name) for name in PolicyCounters.__dataclass_fields__ if name.startswith("num_")}
    gauges = {PREFIX + name for name in GAUGES} | {IMAGE_PREFIX + name for name in IMAGE_GAUGES}
    return of_images | counted | gauges | {f"{PREFIX}kept_fraction", f"{PREFIX}stage_seconds"}


def metrics_in(text: str) -> set[str]:
    """Metrics that a text names; the series of a histogram count as the histogram."""
    return {re.sub(r"_(sum|count|bucket)$", "", name) for name in re.findall(r"star_kv:[a-z_]+[a-z]\b(?!_\*)", text)}


def test_tables_and_figures_are_those_of_code_and_rows() -> None:
    """`python scripts/docs_parts.py` writes them."""
    assert [str(path.relative_to(ROOT)) for path in docs_parts.stale()] == []


def test_every_part_is_on_a_page() -> None:
    used = {match["name"] for path in docs_parts.pages() for match in docs_parts.PART.finditer(path.read_text("utf-8"))}
    assert used == set(docs_parts.PARTS)


def test_every_figure_with_a_name_is_on_a_page() -> None:
    texts = [path.read_text(encoding="utf-8") for path in docs_parts.pages()]
    used = {match["name"] for text in texts for match in docs_figures.MARKED.finditer(text)}
    over = {one.over for one in docs_figures.figures().values()} - {None}
    assert set(docs_figures.figures()) - used - over == set()


def test_a_figure_that_was_measured_again_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    rows = ["date,policy,value", "2026-01-01,star,5", "2026-01-01,stock,8"]
    file = tmp_path / "benchmarks" / "some.csv"
    monkeypatch.setattr(docs_figures, "ROOT", tmp_path)
    figure = docs_figures.Figure("some", "some.csv", {"policy": "star"}, format="{:.0f}")
    beside = docs_figures.Figure("other", "some.csv", {"policy": "stock"}, beside="star", format="{:.0f}")
    seen = []
    for row in (None, "2026-01-02,star,6", "2026-01-03,stock,9"):
        rows += [row] if row is not None else []
        file.write_text("\n".join(rows), encoding="utf-8")
        docs_figures.rows_of.cache_clear()
        seen.append((figure.text(), beside.text()))
    docs_figures.rows_of.cache_clear()
    assert seen == [("5", "8"), ("6", "8"), ("6", "8")]


def test_a_figure_without_a_row_says_so() -> None:
    with pytest.raises(docs_figures.FigureError, match=r"no row of benchmarks/serve_h100\.csv"):
        docs_figures.Figure("none", "serve_h100.csv", {"policy": "nobody's"}).text()
    with pytest.raises(docs_figures.FigureError, match=r"is not in docs/figures\.toml"):
        docs_figures.with_figures("<!-- figure nobodys -->1<!-- /figure -->")


def test_every_policy_and_key_is_described() -> None:
    policies, flags = page("policies.md"), page("flags.md")
    for name in policy_names():
        assert f"`{name}`" in policies
        assert [key for key in policy_keys(name) if f"`{key}`" not in flags] == []


def test_every_metric_is_on_the_page_of_metrics_and_nothing_else() -> None:
    assert metrics_in(page("observability.md")) == metrics()


def test_the_dashboard_shows_metrics_that_exist() -> None:
    board: dict[str, Any] = json.loads(page("grafana.json"))
    asked = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    assert metrics_in(" ".join(asked)) <= metrics()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_refusal_is_in_troubleshooting() -> None:
    text = page("troubleshooting.md")
    assert [rule.reason for rule in FLAG_RULES if rule.reason.partition(": ")[0] not in text] == []


def test_what_is_refused_is_in_the_matrix() -> None:
    rows = [line for line in page("matrix.md").splitlines() if line.startswith("| ")]
    refused = [line.split("|")[1].strip() for line in rows if re.search(r"\| no \|( no \|)+", line)]
    words = {
        "prefill CUDA graphs": None,
        "speculative decoding": "speculative_algorithm",
        "hierarchical and external caches": "enable_hierarchical_cache",
        "pipeline, context parallelism": "pp_size",
        "prefill/decode disaggregation": "disaggregation_mode",
        "LoRA": "enable_lora",
        "quantised KV cache but `fp8_e4m3`": "kv_cache_dtype",
    }
    assert refused == list(words)
    fields = {field for rule in FLAG_RULES for field in rule.fields}
    assert {field for field in words.values() if field is not None} <= fields


def test_versions_are_the_supported_ones() -> None:
    (version,) = SUPPORTED_SGLANG
    assert f"FROM lmsysorg/sglang:v{version}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"| {version} |" in page("releases.md")
    assert f"| SGLang | {version}" in page("supported.md")


def test_every_command_says_how_it_is_known_to_work() -> None:
    unknown = [one.place for one in docs_commands.all_blocks() if one.kind not in docs_commands.KINDS]
    assert unknown == []


def test_both_first_pages_start_the_same_server() -> None:
    """The newcomer's path starts the one of the quick starts, which also shows its tree."""
    last = {one.page: one.text.splitlines()[-1] for one in docs_commands.all_blocks() if one.kind == "start"}
    assert last["docs/quickstart.md"] == last["README.md"] + " --kv-introspection tree"


def test_marks_of_commands_name_what_exists() -> None:
    for block in docs_commands.all_blocks():
        if block.kind == "cpu" and block.rest:
            assert (ROOT / block.rest).is_file(), block.place
        if block.kind == "not run":
            assert block.rest, f"{block.place} gives no reason"


def test_commands_of_a_gpu_carry_the_last_run_of_their_rows() -> None:
    for block in docs_commands.all_blocks():
        if block.kind == "gpu":
            file, gpu, sglang, date = block.rest.split(", ")
            rows = [row for row in docs_figures.rows_of(file) if row["sglang"] == sglang.removeprefix("SGLang ")]
            newest = max(rows, key=lambda row: row["date"])
            assert (newest["gpu"], newest["date"][:10]) == (gpu, date), block.place
