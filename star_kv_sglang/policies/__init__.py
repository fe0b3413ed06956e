"""The KV policies, one module each: the module's name is the policy's, with dashes for underscores.

A module defines one subclass of `KVPolicy` named ``Policy`` and, as ``Params``, a frozen dataclass of its parameters.
Helpers live in the subpackage ``base``: no policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from star_kv_sglang.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from star_kv_sglang.policies.base.interface import KVPolicy
    from star_kv_sglang.policies.base.params import PolicyParams

RENAMED = {"temporal_discount": "temporal", "entropy_temperature": "temperature"}
"""Parameters that had another name in 0.2.0."""
REFUSED = {
    "pyramidkv": (
        "its only difference from snapkv is a budget that falls from layer to layer, and all layers of a request share "
        "one page table here, so that each holds equally many tokens; use snapkv"
    ),
    "meda": (
        "it is a budget for each layer, by the entropy of the layer's attention between text and screenshots, and all "
        "layers of a request share one page table here, so that each holds equally many tokens; use lookm, which "
        "merges pairs too"
    ),
}
"""Published policies that are not offered, and why."""


def policy_names() -> tuple[str, ...]:
    """Names of all policies, sorted."""
    return tuple(sorted(_name(module.name) for module in iter_modules(__path__) if not module.ispkg))


def policy_class(name: str) -> type[KVPolicy[Any]]:
    """The class of a policy.

    Raises:
        ValueError: There is no policy of that name.
    """
    found: type[KVPolicy[Any]] = _module(name).Policy
    return found


def policy_keys(name: str) -> tuple[str, ...]:
    """The parameters of a policy, as ``--kv-policy-config`` takes them.

    Raises:
        ValueError: There is no policy of that name.
    """
    return tuple(
        sorted(one.name for record in policy_records(name) for one in fields(record) if _nested(one.name) is None)
    )


def policy_records(name: str) -> tuple[type[Any], ...]:
    """The dataclasses whose fields are the parameters of a policy: its own, and the scorer's where it has one.

    Raises:
        ValueError: There is no policy of that name.
    """
    made: type[PolicyParams] = _module(name).Params
    return (made, *(nested for one in fields(made) if (nested := _nested(one.name)) is not None))


def policy_params(name: str, values: Mapping[str, Any]) -> PolicyParams:
    """Parameters of a policy.

    Args:
        name: The policy.
        values: By key; the others have their defaults.

    Raises:
        ConfigError: The policy has no such parameter, or a value is wrong.
        ValueError: There is no policy of that name.
    """
    unknown = sorted(set(values) - set(policy_keys(name)))
    if unknown:
        keys = ", ".join(policy_keys(name)) or "none of its own"
        renamed = "".join(f"; {key} is now {RENAMED[key]}" for key in unknown if key in RENAMED)
        raise ConfigError(f"{name} has no parameter {', '.join(unknown)}{renamed}; its parameters: {keys}")
    made: type[PolicyParams] = _module(name).Params
    given: dict[str, Any] = {}
    for param in fields(made):
        nested = _nested(param.name)
        if nested is not None:
            inner = {field.name: values[field.name] for field in fields(nested) if field.name in values}
            given[param.name] = _scorer(inner)
        elif param.name in values:
            given[param.name] = values[param.name]
    return made(**given)


def _nested(field: str) -> type[Any] | None:
    """The dataclass whose fields are keys in place of this one."""
    from star_kv_sglang.algorithm.params import ScorerParams

    return ScorerParams if field == "scorer" else None


def _scorer(values: Mapping[str, Any]) -> Any:
    from star_kv_sglang.algorithm.params import ScorerParams

    try:
        return ScorerParams.from_mapping(values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _module(name: str) -> ModuleType:
    if name not in policy_names():
        raise ValueError(f"there is no KV policy {name!r}; choose one of {', '.join(policy_names())}")
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def _name(module: str) -> str:
    return module.replace("_", "-")
