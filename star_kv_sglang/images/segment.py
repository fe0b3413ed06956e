"""Anonymous shared memory that another process of the same user maps by the owner's file descriptor.

Nothing has a name in a file system: what a killed process held is gone with it, and ``/dev/shm`` may be small.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch

_NAME = "star-kv-feature"


@dataclass(frozen=True)
class SegmentAddress:
    """Where another process finds a segment.

    Attributes:
        pid: The process that owns it.
        fd: Its file descriptor there.
        inode: Of the memory file; another file under the same descriptor is not taken for it.
        num_bytes: Its size.
    """

    pid: int
    fd: int
    inode: int
    num_bytes: int


class Segment:
    """Shared memory that this process owns; it is given back when nobody in this process refers to it.

    Args:
        num_bytes: Its size, above 0.

    Attributes:
        memory: Its bytes. The mapping holds no second descriptor, as one of Python's ``mmap`` would.
        address: Where another process finds it.

    Raises:
        OSError: The memory is not there (ENOMEM, ENOSPC), or too many files are open (EMFILE).
    """

    def __init__(self, num_bytes: int) -> None:
        self._fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        try:
            # Pages that are only promised would end the process where they are written first.
            os.posix_fallocate(self._fd, 0, num_bytes)
            self.memory = _map(self._fd, num_bytes, shared=True)
        except BaseException:
            os.close(self._fd)
            raise
        self.address = SegmentAddress(os.getpid(), self._fd, os.fstat(self._fd).st_ino, num_bytes)

    @property
    def path(self) -> str:
        """Where another process opens it."""
        return _path(self.address)

    def __del__(self) -> None:
        """Close the descriptor; pages that somebody maps stay until they are unmapped."""
        if hasattr(self, "memory"):
            os.close(self._fd)


@cache
def can_be_mapped_by_a_child() -> bool:
    """Whether another process of this user may open what this one holds; asked once, of a child that does nothing else.

    Namespaces and security modules can forbid it.
    """
    segment = Segment(mmap.PAGESIZE)
    command = [sys.executable, "-I", "-S", "-c", "import os, sys; os.open(sys.argv[1], os.O_RDONLY)", segment.path]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def most_segments() -> int:
    """Segments that this process may hold: half of the files that it may open. The others are for its clients."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def map_privately(address: SegmentAddress) -> torch.UntypedStorage:
    """Map another process's segment; what is written here stays here, and nothing is read before it is asked for.

    Raises:
        OSError: The owner is gone, or no longer holds the segment.
    """
    fd = os.open(_path(address), os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if (found.st_ino, found.st_size) != (address.inode, address.num_bytes):
            raise FileNotFoundError(
                f"process {address.pid} no longer holds the features behind descriptor {address.fd}"
            )
        return _map(fd, address.num_bytes, shared=False)
    finally:
        os.close(fd)


def _map(fd: int, num_bytes: int, *, shared: bool) -> torch.UntypedStorage:
    """Map a file whose descriptor may be closed then.

    Raises:
        OSError: The process has no room for another mapping, or for the descriptor that this takes meanwhile.
    """
    try:
        # PyTorch's types say that of every kind of storage.
        return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(f"/proc/self/fd/{fd}", shared, num_bytes))
    except RuntimeError as error:
        raise OSError(errno.ENOMEM, f"{num_bytes} bytes could not be mapped: {error}") from error


def _path(address: SegmentAddress) -> str:
    return f"/proc/{address.pid}/fd/{address.fd}"
