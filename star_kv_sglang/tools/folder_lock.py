"""A folder that one process writes at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO


class FolderInUseError(Exception):
    """Another process writes there."""


def locked(folder: Path, name: str, *, what: str) -> TextIO:
    """An open file that is locked until it is closed, or until this process ends, however it ends.

    Args:
        folder: it exists.
        name: of the file.
        what: writes there.

    Raises:
        FolderInUseError: another process has it; the message has that one's id.
    """
    file = (folder / name).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise FolderInUseError(
            f"{folder} is in use: another {what} (process {owner}) writes there; wait for it, or give another --out"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
