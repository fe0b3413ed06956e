"""`star-kv view`: draw the tokens that a policy kept on their screenshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, UnidentifiedImageError

from star_kv_sglang.tools.report.kept import draw_kept
from star_kv_sglang.tools.report.trace import TraceError, load_trace, require_match


def view(
    trace: Annotated[Path, typer.Argument(help="Trace of a pruned segment (.npz), as trace_dir collects them.")],
    image: Annotated[Path, typer.Option(help="The screenshot it belongs to.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("kept.png"),
) -> None:
    """Draw the tokens that a policy kept on their screenshot."""
    loaded = load_trace(trace)
    try:
        with Image.open(image) as screenshot:
            require_match(loaded, *screenshot.size)
            picture = draw_kept(screenshot, loaded.kept_fraction())
    except (OSError, UnidentifiedImageError) as error:
        raise TraceError(f"--image {image}: cannot be read as a picture ({error})") from error
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise TraceError(f"--out {out}: cannot be written ({error}); give a path that ends in .png") from error
    start, end = loaded.segment
    num_layers, num_kept = loaded.kept.shape
    typer.echo(
        f"{out}: screenshot {loaded.frame_index + 1} of {loaded.num_frames}, {num_layers} layers keep {num_kept} of "
        f"{end - start} tokens each (grid {loaded.rows} x {loaded.cols}, budget {loaded.budget:g})"
    )
