"""What the one collective of a scored batch takes between tensor parallel ranks: a GPU each, by NCCL.

    python tests/gpu/collective.py [--ranks 2] [--layers 28] [--heads 4] [--tokens 13510]

It gathers the attention of all key heads, as `star_kv_sglang.engine.ranks` does, and checks what arrived.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.multiprocessing
from torch import distributed

_NUM_CALLS = 50
_PORT = "29511"


def measure(rank: int, num_ranks: int, shape: tuple[int, int, int]) -> None:
    """Print this rank's microseconds for one call."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=_PORT)
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", rank=rank, world_size=num_ranks)
    part = torch.full(shape, float(rank), device="cuda")
    whole = torch.empty((num_ranks, *shape), device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(_NUM_CALLS + 5):
        if number == 5:
            torch.cuda.synchronize()
            start.record()
        distributed.all_gather_into_tensor(whole, part)
    end.record()
    torch.cuda.synchronize()
    arrived = whole.flatten(1)[:, 0].tolist() == [float(other) for other in range(num_ranks)]
    micros = start.elapsed_time(end) / _NUM_CALLS * 1e3
    said = f"rank {rank}: {micros:.1f} us, {'right' if arrived else 'WRONG'}, {torch.cuda.get_device_name()}"
    print(said, flush=True)  # noqa: T201
    distributed.destroy_process_group()
    if not arrived:
        raise SystemExit(1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--heads", type=int, default=4, help="key heads of a layer, of all ranks")
    parser.add_argument("--tokens", type=int, default=13_510, help="live tokens of the batch")
    given = parser.parse_args()
    shape = given.layers, max(1, given.heads // given.ranks), given.tokens
    torch.multiprocessing.spawn(measure, args=(given.ranks, shape), nprocs=given.ranks)


if __name__ == "__main__":
    main()
