"""`star-kv bench`: measurements, each a command of its own."""

from __future__ import annotations

import typer

from star_kv_sglang.tools.cli.bench_budget import budget
from star_kv_sglang.tools.cli.bench_fleet import fleet
from star_kv_sglang.tools.cli.bench_group import group
from star_kv_sglang.tools.cli.bench_ops import ops
from star_kv_sglang.tools.cli.bench_recognition import recognition
from star_kv_sglang.tools.cli.bench_scale import scale
from star_kv_sglang.tools.cli.bench_serve import serve
from star_kv_sglang.tools.cli.bench_sizing import sizing
from star_kv_sglang.tools.cli.bench_tree import tree
from star_kv_sglang.tools.cli.bench_turn import turn
from star_kv_sglang.tools.cli.bench_waiting import waiting

bench_app = typer.Typer(
    help="Measure time and memory. Nothing is reported whose tests are not green.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app.command("ops")(ops)
bench_app.command("turn")(turn)
bench_app.command("serve")(serve)
bench_app.command("fleet")(fleet)
bench_app.command("group")(group)
bench_app.command("budget")(budget)
bench_app.command("tree")(tree)
bench_app.command("recognition")(recognition)
bench_app.command("waiting")(waiting)
bench_app.command("sizing")(sizing)
bench_app.command("scale")(scale)
