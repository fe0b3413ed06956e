"""What the processes of a server hold, as the system counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

NAMES = {"scheduler": "scheduler", "detokenizer": "detokenizer", "api": "serve"}
"""A word of the command line or title of each process; the one that answers clients comes last, as the others' words
are more exact."""
_SEGMENT = "memfd:star-kv-feature"


@dataclass(frozen=True)
class Held:
    """What one process holds.

    Attributes:
        num_bytes: Resident memory.
        num_files: Open descriptors.
        num_shared_bytes: In segments with features of screenshots that it owns.
    """

    num_bytes: int
    num_files: int
    num_shared_bytes: int


def server_processes() -> dict[str, psutil.Process]:
    """The processes of the server that this process has started.

    Raises:
        ValueError: One of them is not found.
    """
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        if process.status() == psutil.STATUS_ZOMBIE:
            continue
        words = " ".join(process.cmdline())
        name = next((name for name, word in NAMES.items() if word in words), None)
        if name is not None:
            # The first is the parent of those that it has forked.
            found.setdefault(name, process)
    if found.keys() != NAMES.keys():
        raise ValueError(f"a server has processes {sorted(NAMES)}, found {sorted(found)}")
    return found


def held_by(process: psutil.Process) -> Held:
    """What a process holds now."""
    files = list(Path(f"/proc/{process.pid}/fd").iterdir())
    num_files = num_shared_bytes = 0
    for file in files:
        try:
            if _SEGMENT in str(file.readlink()):
                num_shared_bytes += file.stat().st_size
            num_files += 1
        except FileNotFoundError:
            continue  # closed meanwhile
    return Held(process.memory_info().rss, num_files, num_shared_bytes)
