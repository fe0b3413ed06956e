"""`star-kv view`: a running server's tree, a recorded one, or the tokens that a policy kept on a screenshot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, UnidentifiedImageError

from star_kv_sglang.tools.report.kept import draw_kept
from star_kv_sglang.tools.report.trace import TraceError, load_trace, require_match
from star_kv_sglang.tools.view.app import Source, address_of, listen, serve
from star_kv_sglang.tools.view.client import Client
from star_kv_sglang.tools.view.live import LiveSource
from star_kv_sglang.tools.view.recorded import RecordedSource
from star_kv_sglang.tools.view.recording import Recorder

_TRACE_ENDS = ".npz"


def view(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A recording (.jsonl), or the trace of a pruned segment (.npz) with --image."
        ),
    ] = None,
    live: Annotated[str | None, typer.Option(metavar="URL", help="A server that runs with --kv-introspection.")] = None,
    record: Annotated[Path | None, typer.Option(help="With --live: write all that is shown to a new file.")] = None,
    record_frames: Annotated[
        bool, typer.Option("--record-frames", help="With --record: also every heat map and, if shown, screenshot.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.25, max=60.0, help="With --live: seconds between looks.")] = 1.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="STAR_KV_API_KEY", show_envvar=True, help="With --live: the server's key.")
    ] = None,
    host: Annotated[str, typer.Option(help="Of the page; it asks for no key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the page; 0: any that is free.")] = 30_800,
    image: Annotated[Path | None, typer.Option(help="The screenshot that a trace belongs to.")] = None,
    out: Annotated[Path, typer.Option(help="The picture to write, for a trace.")] = Path("kept.png"),
) -> None:
    """Show the tree of a running server (--live) or of a recording in a browser, or draw a trace on its screenshot."""
    if (file is None) == (live is None):
        raise typer.BadParameter("give a FILE, or --live URL; `star-kv view --help` says more")
    if live is None and (record is not None or record_frames):
        raise typer.BadParameter("--record and --record-frames need --live URL")
    if record_frames and record is None:
        raise typer.BadParameter("--record-frames needs --record FILE")
    if file is not None and (image is not None or file.suffix == _TRACE_ENDS):
        if image is None:
            raise typer.BadParameter(f"{file} is a trace: give its screenshot with --image", param_hint="--image")
        _draw(file, image, out)
        return
    source: Source
    if file is not None:
        recorded = RecordedSource(file)
        if recorded.problem is not None:
            typer.echo(f"warning: {recorded.problem}", err=True)
        source = recorded
    else:
        source = _watch(live or "", api_key, interval, record, with_frames=record_frames)
    listener = listen(host, port)
    typer.echo(f"Showing {source.title} at {address_of(listener)} (Ctrl-C ends it)")
    serve(source, listener)


def _watch(url: str, api_key: str | None, interval: float, record: Path | None, *, with_frames: bool) -> LiveSource:
    """Look once, so that a wrong server is told here; nothing is written for one."""

    async def look() -> str | None:
        client = Client(url, api_key)
        try:
            return await LiveSource(client, interval_s=interval).first()
        finally:
            await client.close()

    problem = asyncio.run(look())
    if problem is not None:
        typer.echo(f"warning: {problem}; waiting for it", err=True)
    recorder = None if record is None else Recorder(record)
    return LiveSource(Client(url, api_key), interval_s=interval, recorder=recorder, with_frames=with_frames)


def _draw(trace: Path, image: Path, out: Path) -> None:
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
