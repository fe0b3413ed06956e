"""`star-kv bench turn`: what the policy adds to one turn and to decode steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from star_kv_sglang.tools.bench.turn import TurnProfile
    from star_kv_sglang.tools.bench.turn_profile import Profile


def turn(
    cached_screens: Annotated[int, typer.Option(help="1920x1080 screenshots in the history.")] = 4,
    policy: Annotated[str, typer.Option(help="The KV policy.")] = "star",
    budget: Annotated[float, typer.Option(help="The policy's budget.")] = 0.2,
    against: Annotated[
        str | None, typer.Option(help="A second policy, on an engine of its own; full is stock SGLang.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="About so many decode steps.")] = 64,
    csv: Annotated[Path | None, typer.Option(help="Append the stages to this CSV.")] = None,
) -> None:
    """Profile the prefill of one turn of a 7B-shaped model on this GPU, and decode steps over a pruned history: GPU
    time of every stage of the policy, and in how many calls the host waits for the GPU.
    """
    import torch
    from rich.console import Console

    from star_kv_sglang.tools.bench.append import header
    from star_kv_sglang.tools.bench.turn import Case, append_csv, columns, profile_turn

    console = Console(width=120)
    if not torch.cuda.is_available():
        console.print("star-kv bench turn needs an NVIDIA GPU; torch sees none")
        raise typer.Exit(2)
    if csv is not None and header(csv) not in ([], columns()):
        console.print(f"{csv} has other columns than this version writes; name another file")
        raise typer.Exit(2)
    profiles = {}
    for name in [policy] if against is None else [policy, against]:
        case = Case(name, budget, cached_screens, steps)
        with tempfile.TemporaryDirectory() as folder:
            profiles[name] = profile_turn(Path(folder), case)
        for part, profile in profiles[name].parts.items():
            console.print(stage_table(name, part, profile))
        if csv is not None:
            append_csv(csv, case, profiles[name])
    console.print(wait_table(profiles))


def stage_table(policy: str, part: str, profile: Profile) -> Table:
    """GPU time of each stage, and the calls in it that wait."""
    title = f"{part}, {policy}: {profile.kernel_us / 1e3:.1f} ms of kernels"
    table = _table(title, ("stage", "ranges", "GPU us", "elapsed us", "share of the rest", "waits"), num_words=1)
    for stage in profile.stages:
        times = f"{stage.gpu_us:.1f}", f"{stage.elapsed_us:.1f}", f"{stage.share:.3%}"
        table.add_row(stage.name, str(stage.num_ranges), *times, str(stage.waits.total))
    table.add_section()
    gpu_us, elapsed_us = (sum(getattr(one, name) for one in profile.stages) for name in ("gpu_us", "elapsed_us"))
    share, waits = f"{profile.policy_share:.3%}", str(profile.policy_waits)
    table.add_row("all stages", "", f"{gpu_us:.1f}", f"{elapsed_us:.1f}", share, waits)
    return table


def wait_table(profiles: Mapping[str, TurnProfile]) -> Table:
    """Calls of whole profiles in which the host waits, SGLang's included."""
    columns = ("profile", "policy", "prefills", "decode steps", "stream", "device", "event", "copies", "queued copies")
    table = _table("Host waits for the GPU", (*columns, "waits a pass"), num_words=2)
    for part in ("turn", "decode"):
        for policy, both in profiles.items():
            one = both.parts[part]
            waits, passes = one.waits, one.num_prefills + one.num_decodes
            counts = (one.num_prefills, one.num_decodes, waits.stream, waits.device, waits.event, waits.copies)
            per_pass = f"{waits.total / passes:.2f}" if passes else ""
            table.add_row(part, policy, *(str(n) for n in counts), str(waits.queued_copies), per_pass)
    return table


def _table(title: str, columns: Sequence[str], *, num_words: int) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < num_words else "right")
    return table


if __name__ == "__main__":
    typer.run(turn)
