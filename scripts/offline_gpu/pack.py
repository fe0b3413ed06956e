"""Pack what SGLang 0.5.23 needs for a Hopper GPU machine that has Python 3.12 and CUDA 13.0, but no network.

    python3 scripts/offline_gpu/pack.py --work DIR [--part-mib 54]

Needs a package registry, Python 3.9 or newer on x86-64, gcc and xz. Downloads the wheels of ``pins.txt`` for CPython
3.12, leaves out what a Qwen-VL model on an H100 or H200 never reads, empties the machine code of other GPUs, and writes
numbered pieces to DIR/parts, each with ``install.py`` beside it. ``docs/gpu.md`` says how to use them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Never read by a Qwen-VL model on a Hopper GPU with FlashInfer.
DROPPED = (
    # sglang: diffusion server, tests, the servers written in Rust
    "sglang/multimodal_gen",
    "sglang/test",
    "sglang/benchmark",
    "sglang/srt/rust_extensions/_server.cpython-312-x86_64-linux-gnu.so",
    "sglang/srt/rust_extensions/_bench.cpython-312-x86_64-linux-gnu.so",
    "sglang/srt/rust_extensions/_grpc.cpython-312-x86_64-linux-gnu.so",
    "sglang/srt/rust_extensions/_multimodal.cpython-312-x86_64-linux-gnu.so",
    # sglang-kernel: FlashAttention 3 (1.1 GB), FlashMLA, InfLLM, Blackwell
    "sgl_kernel/flash_ops.abi3.so",
    "sgl_kernel/flashmla_ops.abi3.so",
    "sgl_kernel/infllm_ops.cpython-310-x86_64-linux-gnu.so",
    "sgl_kernel/sm100",
    # torch: headers, compilers, linear algebra on a GPU
    "torch/include",
    "torch/bin/protoc",
    "torch/bin/protoc-3.21.12.0",
    "torch/share",
    "torch/test",
    "torch/lib/libtorch_cuda_linalg.so",
    # triton: the profiler, and an assembler that TRITON_PTXAS_PATH replaces
    "triton/backends/nvidia/bin/cuobjdump",
    "triton/backends/nvidia/bin/nvdisasm",
    "triton/backends/nvidia/bin/ptxas",
    "triton/backends/nvidia/bin/ptxas-blackwell",
    "triton/backends/nvidia/lib/cupti",
    "triton/backends/nvidia/lib/cupti-blackwell",
    "triton/_C/libproton.so",
    # flashinfer: sources of other models and GPUs, and what is on no include path
    *(
        f"flashinfer/data/csrc/{name}"
        for name in (
            "alphamoe_nvfp4_sm100.cu",
            "blackwell_bf16_fp4",
            "blackwell_msa",
            "cake_batch_deepgemm_fp8",
            "cake_bgmv_moe",
            "cake_dsv4",
            "cake_fmha",
            "cake_sage_block_sparse_attention",
            "cake_sampling",
            "cake_vsa_sm90",
            "experimental",
            "fused_moe",
            "gdn",
            "kda",
        )
    ),
    "flashinfer/fused_moe/backends/cudnn_frost/artifacts",
    *(f"flashinfer/data/cutlass/{name}" for name in ("docs", "examples", "media", "python", "test", "tools/library")),
    *(
        f"flashinfer/data/cccl/{name}"
        for name in (
            "benchmarks",
            "ci",
            "cub/benchmarks",
            "cub/examples",
            "cub/test",
            "docs",
            "libcudacxx/benchmarks",
            "libcudacxx/test",
            "python",
            "test",
            "thrust/benchmarks",
            "thrust/examples",
            "thrust/testing",
        )
    ),
)

# Functions of NCCL 2.30.7 that torch 2.14.1 links to and NCCL 2.28.9, which comes with CUDA 13.0, lacks. One GPU calls
# none of them; the stubs answer ncclInvalidUsage.
MISSING_IN_NCCL = (
    "ncclCommGetUniqueId",
    "ncclCommGrow",
    "ncclCommMemStats",
    "ncclCommResume",
    "ncclCommSuspend",
    "ncclGetLsaMultimemDevicePointer",
    "ncclGetPeerDevicePointer",
    "ncclPutSignal",
    "ncclSignal",
    "ncclWaitSignal",
    "ncclWinGetUserPtr",
)
NCCL_INVALID_USAGE = 5

# One archive each, unpacked side by side; a file goes into the first that begins as its path does.
ARCHIVES: dict[str, tuple[str, ...]] = {
    "torch_cpu": ("torch/lib/libtorch_cpu.so",),
    "torch_cuda": ("torch/lib/libtorch_cuda.so",),
    "triton": ("triton/",),
    "torch_rest": ("torch/", "functorch/", "torchgen/", "torchvision/"),
    "flashinfer": ("flashinfer/",),
    "rest": ("",),
}
MACHINE_CODE = ("torch_cpu", "torch_cuda", "triton")
"""Archives that xz's filter for x86 makes smaller."""

HOPPER = 90
FATBIN_MAGIC = 0xBA55ED50
ELF_ENTRY = 2
BIG_LIBRARY = 2 << 20


def main() -> None:
    """Download, cut, compress, split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything, 8 GB")
    parser.add_argument("--part-mib", type=float, default=54, help="largest size of a piece")
    given = parser.parse_args()
    stage = given.work / "stage"
    lay_out(download(given.work / "wheels"), stage)
    mend(stage, given.work)
    for library in sorted(stage.rglob("*.so*")):
        if library.is_file() and library.stat().st_size > BIG_LIBRARY:
            empty_other_code(library)
    split(compress(stage, given.work / "archives"), given.work / "parts", int(given.part_mib * 2**20))


def download(folder: Path) -> list[Path]:
    """The wheels of ``pins.txt``, for CPython 3.12 on x86-64; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [*(f"manylinux_2_{n}_x86_64" for n in range(39, 4, -1)), "manylinux2014_x86_64", "manylinux2010_x86_64"]
    command = [
        *(
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.12",
        ),
        *("--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none", "-d", str(folder)),
        *(word for platform in platforms for word in ("--platform", platform)),
    ]
    wheels = []
    for pin in (HERE / "pins.txt").read_text(encoding="utf-8").split():
        if not _wheels_of(folder, pin):
            subprocess.run([*command, pin], check=True)
        (wheel,) = _wheels_of(folder, pin)
        wheels.append(wheel)
    return wheels


def _wheels_of(folder: Path, pin: str) -> list[Path]:
    name, version = pin.lower().split("==")
    plain = name.replace("-", "_").replace(".", "_")
    return [
        wheel
        for wheel in folder.glob("*.whl")
        if wheel.name.split("-")[0].lower().replace(".", "_") == plain and wheel.name.split("-")[1] == version
    ]


def lay_out(wheels: list[Path], stage: Path) -> None:
    """Unpack the wheels into one folder, without what is dropped."""
    shutil.rmtree(stage, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for entry in packed.infolist():
                if not entry.is_dir() and not _is_dropped(entry.filename):
                    packed.extract(entry, stage)
                    if entry.external_attr >> 16 & 0o111:
                        (stage / entry.filename).chmod(0o755)
    for data in stage.glob("*.data"):
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, stage, dirs_exist_ok=True)
        shutil.rmtree(data)


def _is_dropped(name: str) -> bool:
    if name.endswith((".a", ".pyi")) or (name.startswith("triton/backends/amd/") and not name.endswith(".py")):
        return True
    return any(name == dropped or name.startswith(f"{dropped}/") for dropped in DROPPED)


def mend(stage: Path, work: Path) -> None:
    """Make torch start beside an older NCCL, and SGLang beside a missing cutlass."""
    source = work / "nccl_stubs.c"
    stubs = "".join(f"int {name}() {{ return {NCCL_INVALID_USAGE}; }}\n" for name in MISSING_IN_NCCL)
    source.write_text(stubs, encoding="utf-8")
    library = stage / "torch" / "lib" / "libnccl_stubs.so"
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    # In the global scope before torch's own libraries.
    path = "os.path.join(os.path.dirname(__file__), 'lib', 'libnccl_stubs.so')"
    _insert_before(
        stage / "torch" / "__init__.py",
        "        _load_global_deps()\n",
        f"        ctypes.CDLL({path}, mode=ctypes.RTLD_GLOBAL)\n",
    )
    # It imports a kernel for Blackwell, whose module needs cutlass, before it looks at the GPU.
    dual = stage / "sglang" / "srt" / "layers" / "dual_gemm.py"
    asked = "        if not is_cuda():\n"
    text = _unique(dual, asked)
    instead = (
        "        import importlib.util\n\n        if not is_cuda() or importlib.util.find_spec('cutlass') is None:\n"
    )
    dual.write_text(text.replace(asked, instead), encoding="utf-8")


def _insert_before(file: Path, line: str, new: str) -> None:
    file.write_text(_unique(file, line).replace(line, new + line), encoding="utf-8")


def _unique(file: Path, line: str) -> str:
    text = file.read_text(encoding="utf-8")
    if text.count(line) != 1:
        sys.exit(
            f"{file}: {line.strip()!r} is there {text.count(line)} times; pins.txt names versions this was made for"
        )
    return text


def empty_other_code(path: Path) -> None:
    """Zero code for other GPUs and everything that is never loaded; no offset moves, and zeros compress to nothing."""
    data = bytearray(path.read_bytes())
    for name, kind, flags, start, size in list(_sections(data)):
        if name in (".nv_fatbin", "__nv_relfatbin"):
            _empty_fatbins(data, start, start + size)
        elif not flags & 2 and kind != 8 and name.startswith((".symtab", ".strtab", ".debug")):  # not loaded, not empty
            data[start : start + size] = bytes(size)
    path.write_bytes(data)


def _sections(data: bytearray) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, type, flags, offset and size of an ELF file's sections."""
    offset = struct.unpack_from("<Q", data, 0x28)[0]
    size, number, names = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, offset + index * size) for index in range(number)]
    for head in heads:
        start = heads[names][4] + head[0]
        yield bytes(data[start : data.index(b"\0", start)]).decode(), head[1], head[2], head[4], head[5]


def _empty_fatbins(data: bytearray, position: int, end: int) -> None:
    """Keep a fat binary's code for Hopper, or where it has none the newest that Hopper can take."""
    while position < end - 16:
        magic, _, head, length = struct.unpack_from("<IHHQ", data, position)
        if magic != FATBIN_MAGIC:
            position += 8
            continue
        entries, at, stop = [], position + head, position + head + length
        while at < stop:
            kind, _, entry_head, code_size = struct.unpack_from("<HHIQ", data, at)
            entries.append((kind, struct.unpack_from("<I", data, at + 28)[0], at + entry_head, code_size))
            at += entry_head + code_size
        has_hopper = any(kind == ELF_ENTRY and arch == HOPPER for kind, arch, _, _ in entries)
        older = [arch for _, arch, _, _ in entries if arch <= HOPPER]
        for kind, arch, start, size in entries:
            keeps = (kind == ELF_ENTRY and arch == HOPPER) if has_hopper else (not older or arch == max(older))
            if not keeps:
                data[start : start + size] = bytes(size)
        position = stop


def compress(stage: Path, folder: Path) -> list[Path]:
    """One compressed archive for each group of files."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {name: [] for name in ARCHIVES}
    for file in sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()):
        groups[next(name for name, starts in ARCHIVES.items() if file.startswith(starts))].append(file)

    def squeeze(name: str) -> Path:
        listed, out = folder / f"{name}.list", folder / f"{name}.tar.xz"
        listed.write_text("\n".join(groups[name]) + "\n", encoding="utf-8")
        x86 = ["--x86"] if name in MACHINE_CODE else []
        tar = subprocess.Popen(
            ["tar", "--owner=0", "--group=0", "--mtime=@0", "-C", str(stage), "-T", str(listed), "-cf", "-"],
            stdout=subprocess.PIPE,
        )
        with out.open("wb") as target:
            subprocess.run(["xz", *x86, "--lzma2=preset=6", "-c"], stdin=tar.stdout, stdout=target, check=True)
        if tar.wait():
            sys.exit(f"tar failed for {name}")
        print(name, f"{out.stat().st_size / 2**20:.1f} MiB", flush=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(squeeze, groups))


def split(archives: list[Path], parts: Path, largest: int) -> None:
    """Lay the archives end to end and cut them into equal pieces."""
    shutil.rmtree(parts, ignore_errors=True)
    content = [archive.read_bytes() for archive in archives]
    index = [
        (archive.name, len(data), hashlib.sha256(data).hexdigest())
        for archive, data in zip(archives, content, strict=True)
    ]
    whole = b"".join(content)
    number = -(-len(whole) // largest)
    size = -(-len(whole) // number)
    for part in range(number):
        folder = parts / f"p{part + 1}"
        folder.mkdir(parents=True)
        (folder / f"all.{part + 1:02d}of{number:02d}").write_bytes(whole[part * size : (part + 1) * size])
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        shutil.copy(HERE / "install.py", folder)
    print(f"{number} parts of {size / 2**20:.1f} MiB, {len(whole) / 2**20:.1f} MiB in all")


if __name__ == "__main__":
    main()
