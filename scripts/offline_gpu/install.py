"""Unpack the pieces that ``pack.py`` made, on the GPU machine, when all of them are in one folder.

    python3 install.py [--parts /tmp/parts] [--site /tmp/site]

Afterwards SITE holds SGLang with its torch, and uses the CUDA libraries of the machine's own torch. A copy of this file
lies beside each piece; it needs Python 3.12 and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def main() -> None:
    """Join, check, unpack, and link the CUDA libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, default=Path("/tmp/parts"))
    parser.add_argument("--site", type=Path, default=Path("/tmp/site"))
    given = parser.parse_args()
    pieces = sorted(given.parts.glob("all.*of*"))
    wanted = int(pieces[0].name.rpartition("of")[2]) if pieces else 1
    if len(pieces) < wanted:
        sys.exit(f"{given.parts} has {len(pieces)} of {wanted} pieces")
    libraries = cuda_libraries()
    whole = b"".join(piece.read_bytes() for piece in pieces)
    given.site.mkdir(parents=True, exist_ok=True)
    jobs, start = [], 0
    for name, size, digest in json.loads((given.parts / "index.json").read_text(encoding="utf-8")):
        jobs.append((name, whole[start : start + size], digest, given.site))
        start += size
    with ProcessPoolExecutor(len(jobs)) as processes:
        for name, seconds in processes.map(unpack, jobs):
            print(f"{name}: {seconds:.1f} s", flush=True)
    # torch looks for them under ../../nvidia/<library>/lib
    link = given.site / "nvidia"
    if not link.is_symlink():
        link.symlink_to(libraries)


def cuda_libraries() -> Path:
    """The ``nvidia`` folder beside the machine's own torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} has no torch, whose CUDA libraries are needed: call the Python that has one")
    folder = Path(spec.origin).parent.parent / "nvidia"
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: torch of this machine has its CUDA libraries elsewhere")
    return folder


def unpack(job: tuple[str, bytes, str, Path]) -> tuple[str, float]:
    """Unpack one archive, if it arrived as it was sent."""
    name, data, digest, site = job
    start = time.monotonic()
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{name} did not arrive as it was sent: its checksum differs")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as packed:
        packed.extractall(site, filter="fully_trusted")
    return name, time.monotonic() - start


if __name__ == "__main__":
    main()
