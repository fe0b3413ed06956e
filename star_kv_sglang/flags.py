"""The policy's flags as data: `star-kv serve` reads them before SGLang is imported, `server_args` gives them to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from star_kv_sglang.config import FULL, NEVER, POLICIES, PolicyConfig
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.introspection.protocol import OFF
from star_kv_sglang.limits import WHOLE


@dataclass(frozen=True)
class Flag:
    """A flag of the command line.

    Attributes:
        name: as SGLang's arguments name it: `kv_budget` for `--kv-budget`.
        kind: makes its value from a word; raises ValueError.
        expected: what a word must be, as an error says it.
        metavar: stands for the value in a help.
        help: what it does.
    """

    name: str
    kind: Callable[[str], Any]
    expected: str
    metavar: str
    help: str

    @property
    def option(self) -> str:
        """The flag as a user writes it."""
        return "--" + self.name.replace("_", "-")


def _mebibytes(word: str) -> int:
    size = int(word)
    if not WHOLE.holds(size):
        raise ValueError(f"{size} is negative")
    return size


FLAGS: Final = (
    Flag(
        "kv_policy",
        str,
        "a name",
        "NAME",
        f"KV-cache policy: {', '.join(POLICIES)}. '{FULL}' is stock SGLang. 'star' is STaR-KV's three axes (key-head "
        "prior, discount over time, entropy temperature) on the question's attention and on what stands out.",
    ),
    Flag(
        "kv_budget",
        float,
        "a number in (0, 1]",
        "SHARE",
        "Share of a branch's private screenshot tokens to keep after each prefill, in (0, 1]. Default 0.2; 1 with "
        "'window' and with --kv-token-budget.",
    ),
    Flag(
        "kv_token_budget",
        int,
        "a whole number, 1 or more",
        "TOKENS",
        "Most tokens that the private nodes of all branches may hold together; instead of --kv-budget.",
    ),
    Flag(
        "kv_image_window",
        int,
        "a whole number, 1 or more",
        "SCREENSHOTS",
        "How many of a branch's newest screenshots keep what the policy says; private ones before them keep no token, "
        "and the prefix stays. Default: all of them.",
    ),
    Flag(
        "kv_recognise_windows",
        str,
        "off, asked or all",
        "WHICH",
        "Which prompts that leave screenshots out are served from the branch that has them. Default: off.",
    ),
    Flag(
        "kv_window_placeholder",
        str,
        "a text",
        "TEXT",
        "What clients send in the place of a screenshot that they leave out.",
    ),
    Flag(
        "kv_observation_window",
        int,
        "a whole number, 1 or more",
        "QUERIES",
        "How many of the prompt's last queries score the history. Default 8.",
    ),
    Flag(
        "kv_policy_config",
        str,
        "a JSON object or a file that holds one",
        "JSON",
        "JSON object, or a file that holds one, with the policy's parameters; unknown keys are refused.",
    ),
    Flag(
        "kv_introspection",
        str,
        "off, tree or content",
        "WHAT",
        "What `star-kv view --live` may see: off (the default), tree, or content.",
    ),
    Flag(
        "kv_image_cache_mb",
        _mebibytes,
        "a whole number of MiB, 0 or more",
        "MIB",
        "MiB of processed screenshots that are kept, so that each is processed and moved once; 0: none. Default: an "
        "eighth of the memory, at most 16384, with a policy; off with 'full'.",
    ),
)
HELP: Final = {flag.name: flag.help for flag in FLAGS}


def config_of(given: Mapping[str, str]) -> PolicyConfig:
    """The configuration that the words of a command line ask for.

    Args:
        given: words by the name of their flag; others than ours are not looked at.

    Raises:
        ConfigError: a value is no value of its flag, out of range, unknown, or contradicts another.
    """
    values, problems = {}, []
    for flag in FLAGS:
        if flag.name in given:
            try:
                values[flag.name] = _value(flag, given[flag.name])
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return PolicyConfig.from_flags(
        policy=values.get("kv_policy", FULL),
        budget=values.get("kv_budget"),
        token_budget=values.get("kv_token_budget"),
        observation_window=values.get("kv_observation_window"),
        image_window=values.get("kv_image_window"),
        recognise_windows=values.get("kv_recognise_windows", NEVER),
        window_placeholder=values.get("kv_window_placeholder"),
        policy_config=values.get("kv_policy_config"),
        introspection=values.get("kv_introspection", OFF),
    )


def _value(flag: Flag, word: str) -> Any:
    # SGLang's parser takes a word that looks like a flag for the next flag, except a negative number.
    if not word or word.startswith("--"):
        raise ConfigError(f"{flag.option} needs a value: {flag.expected}")
    try:
        return flag.kind(word)
    except ValueError:
        raise ConfigError(f"{flag.option} {word!r} must be {flag.expected}") from None
