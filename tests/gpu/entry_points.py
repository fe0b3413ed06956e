"""The three ways to start, where nothing but the wheel lies beside SGLang: each serves a pruned conversation.

    pip install --no-deps star_kv_sglang-*.whl        beside SGLang, or --target a folder on PYTHONPATH
    python CHECKOUT/tests/gpu/entry_points.py --model CHECKOUT/examples/tinygui/model \\
        --samples CHECKOUT/tests/examples/data/samples

Run it outside of the checkout, with the paths of these. It imports nothing of the tests, and exits 1 where a way fails.
With ``--cpu`` it starts `star-kv serve`, the one way on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NUM_TURNS = 3
START_S = 240
_MODULE = "from sglang.cli.main import main; import sys; sys.argv[0] = 'sglang'; main()"
_FLAGS: dict[str, Any] = {
    "mm_attention_backend": "triton_attn",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mem_fraction_static": 0.15,
    "max_total_tokens": 16_384,
    "kv_policy": "star",
    "kv_budget": 0.2,
}

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def words(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line."""
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def converse(ask: Ask, samples: Path) -> list[dict[str, int]]:
    """Three turns with a screenshot each; what each response tells of its tokens."""
    turns = json.loads((samples / "trajectories.json").read_text(encoding="utf-8"))[0]["turns"][:NUM_TURNS]
    text, images, told = "", [], []
    for turn in turns:
        question = turn["questions"][-1]["question"]
        text += f"<|im_start|>user  {turn['step']}  <|vision_start|><|image_pad|><|vision_end|>  {question} <|im_end|>"
        text += "<|im_start|>assistant "
        png = (samples / turn["image"]).read_bytes()
        images.append("data:image/png;base64," + base64.b64encode(png).decode())
        sampling = {"temperature": 0, "max_new_tokens": 3}
        answer = ask({"text": text, "image_data": list(images), "sampling_params": sampling})
        use = answer["meta_info"]["star_kv"][0]
        told.append({"cached": answer["meta_info"]["cached_tokens"], "live": use["live"], "pruned": use["pruned"]})
        text += f" {answer['text'].strip()} <|im_end|>"
    return told


@contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[Ask]:
    """A server while the block runs, and how to ask it."""
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=3)
                break
            except OSError:
                time.sleep(1)

        def ask(body: dict[str, Any]) -> dict[str, Any]:
            request = urllib.request.Request(
                f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            answer: dict[str, Any] = json.loads(urllib.request.urlopen(request, timeout=120).read())
            return answer

        yield ask
    finally:
        process.terminate()
        process.wait(60)


def by_server(
    command: list[str], port: int, given: argparse.Namespace, flags: dict[str, Any] = _FLAGS
) -> list[dict[str, int]]:
    """A conversation with a server that this command starts."""
    arguments = words({"model_path": given.model, **flags})
    log = given.out / f"entry_{port}.log"
    with server([sys.executable, *command, *arguments], port, log) as ask:
        return converse(ask, given.samples)


def in_process(given: argparse.Namespace) -> list[dict[str, int]]:
    """A conversation with ``sglang.Engine``, in a process of its own."""
    paths = words({"model": given.model, "samples": given.samples, "out": given.out})
    command = [sys.executable, __file__, "--engine", *paths]
    with (given.out / "entry_engine.log").open("wb") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=START_S, check=True)
    told: list[dict[str, int]] = json.loads(done.stdout.decode().splitlines()[-1])
    return told


def run_engine(given: argparse.Namespace) -> None:
    """What that process does."""
    import sglang

    engine = sglang.Engine(model_path=str(given.model), log_level="error", **_FLAGS)

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = engine.generate(
            prompt=body["text"], image_data=body["image_data"], sampling_params=body["sampling_params"]
        )
        return answer

    told = converse(ask, given.samples)
    engine.shutdown()
    sys.stdout.write(f"\n{json.dumps(told)}\n")


def main() -> None:
    """All three at the same time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the logs")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help="there is no GPU: only `star-kv serve`")
    given = parser.parse_args()
    if given.engine:
        run_engine(given)
        return
    ways: dict[str, Callable[[], list[dict[str, int]]]] = {
        "python -m sglang.launch_server": lambda: by_server(["-m", "sglang.launch_server"], 31_811, given),
        "sglang serve": lambda: by_server(["-c", _MODULE, "serve"], 31_812, given),
        "sglang.Engine": lambda: in_process(given),
    }
    if given.cpu:
        policy = {name: value for name, value in _FLAGS.items() if name.startswith("kv_")}
        serve = ["-m", "star_kv_sglang.cli.main", "serve"]
        ways = {"star-kv serve": lambda: by_server(serve, 31_813, given, policy)}
    failed = False
    with ThreadPoolExecutor(len(ways)) as threads:
        started = {name: threads.submit(way) for name, way in ways.items()}
        for name, way in started.items():
            try:
                told = way.result()
            except Exception as error:  # one way that fails says nothing of the others
                failed = True
                sys.stdout.write(f"{name}: FAILED: {type(error).__name__}: {error}\n")
                continue
            pruned = all(turn["pruned"] > 0 for turn in told)
            failed |= not pruned
            sys.stdout.write(f"{name}: {'ok' if pruned else 'NOT PRUNED'}: {json.dumps(told)}\n")
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
