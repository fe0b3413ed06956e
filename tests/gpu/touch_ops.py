"""Launch every kernel once on a small shape: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from star_kv_sglang.tools.bench.op_cases import build_cases
from star_kv_sglang.tools.bench.shapes import SHAPES
from star_kv_sglang.triton_ops.dispatch import get_ops


def main() -> None:
    """One call of every case."""
    for case in build_cases(SHAPES["tiny"]):
        case.calls(get_ops("triton"))[0]()
        torch.cuda.synchronize()
        print(case.name)  # noqa: T201


if __name__ == "__main__":
    main()
