"""The engine arguments that a machine without a GPU needs, added only where the user did not choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from star_kv_sglang.cpu_mode.errors import CpuModeError

# torch_native is the one attention backend that runs without AMX. SGLang takes pytorch and sdpa on a CPU anyway;
# they are written out so that the log and /server_info show them.
_DEFAULTS: dict[str, object] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "mm_attention_backend": "sdpa",
}
DEFAULT_POOL_TOKENS = 32_768
"""Tokens of the pool where nobody says how large it is: SGLang would fill the machine's memory, whatever the model.
They take 2 GB of a 7B model, and hold ten screenshots of 1920 x 1080."""
_POOL = "max_total_tokens"
# Each of them sizes the pool.
_SIZES_OF_POOL = (_POOL, "mem_fraction_static")


def cpu_engine_kwargs(**given: object) -> dict[str, object]:
    """Keyword arguments for `sglang.Engine` on the CPU; those in `given` win.

    Example:
        >>> cpu_engine_kwargs(model_path="m")["attention_backend"]
        'torch_native'

    Raises:
        CpuModeError: `given` names another device.
    """
    _refuse_other_device(str(given.get("device", "cpu")))
    return {**_defaults(given), **given}


def with_cpu_arguments(argv: Sequence[str]) -> list[str]:
    """Command line of `sglang serve` with the CPU defaults in front of the user's flags.

    A flag that the user gave, on the command line or in the YAML file of `--config`, is left alone. SGLang accepts the
    model as a first word without a flag, which stays first.

    Raises:
        CpuModeError: the user asks for another device.
    """
    return with_flags(argv, missing_cpu_arguments(argv))


def with_flags(argv: Sequence[str], added: Sequence[str]) -> list[str]:
    """A command line of `sglang serve` with more flags in front of the user's, behind a model without a flag."""
    num_positional = 1 if argv and not argv[0].startswith("-") else 0
    return [*argv[:num_positional], *added, *argv[num_positional:]]


def missing_cpu_arguments(argv: Sequence[str]) -> list[str]:
    """The flags that `with_cpu_arguments` adds to this command line.

    Raises:
        CpuModeError: the user asks for another device.
    """
    given = given_flags(argv)
    _refuse_other_device(given.get("device", "cpu"))
    return [
        word
        for name, value in _defaults(given).items()
        if name not in given
        for word in ("--" + name.replace("_", "-"), str(value))
    ]


def _defaults(given: Mapping[str, object]) -> dict[str, object]:
    """What a CPU needs, beside what is given."""
    sized = any(given.get(name) is not None for name in _SIZES_OF_POOL)
    return _DEFAULTS if sized else {**_DEFAULTS, _POOL: DEFAULT_POOL_TOKENS}


def given_flags(argv: Sequence[str]) -> dict[str, str]:
    """Names of the engine arguments on a command line and in its configuration file, with their values as text.

    A flag without a value has the word behind it, or "" at the end.
    """
    on_line: dict[str, str] = {}
    for index, word in enumerate(argv):
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            following = argv[index + 1] if index + 1 < len(argv) else ""
            on_line[flag.replace("-", "_")] = value if equals else following
    config = Path(on_line.get("config", ""))
    # A file that is missing or malformed is SGLang's to report: it knows what it accepts.
    if not config.is_file():
        return on_line
    try:
        in_file = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return on_line
    if not isinstance(in_file, dict):
        return on_line
    # as SGLang writes them onto its command line
    words = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in in_file.items()}
    return {**{str(key).replace("-", "_"): word for key, word in words.items()}, **on_line}


def _refuse_other_device(device: str) -> None:
    if device != "cpu":
        raise CpuModeError(
            f"--device {device} was asked for, but the CUDA driver lists no GPU on this machine. Leave --device out to "
            "serve on the CPU, or run this on a GPU machine."
        )
