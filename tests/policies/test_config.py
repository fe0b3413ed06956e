"""Choosing a policy."""

from __future__ import annotations

from typing import Any

import pytest

from star_kv_sglang.config import PolicyConfig
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.policies import policy_class, policy_names
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Queries


def from_flags(policy: str, config: str | None = None) -> PolicyConfig:
    return PolicyConfig.from_flags(
        policy=policy, budget=0.1, token_budget=None, observation_window=None, policy_config=config
    )


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_can_be_chosen(name: str) -> None:
    assert from_flags(name).policy == name
    assert issubclass(policy_class(name), KVPolicy)


def test_pyramidkv_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"one page table.*use snapkv"):
        from_flags("pyramidkv")


def test_an_unknown_policy_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'fancy' does not exist.*distinct.*snapkv.*star"):
        from_flags("fancy")
    with pytest.raises(ValueError, match="there is no KV policy 'base'"):
        policy_class("base")


def test_own_keys_are_read() -> None:
    config = from_flags("random", '{"seed": 7, "frame_split": "score"}')
    assert (config.seed, config.frame_split) == (7, "score")
    settings = from_flags("star", '{"question_share": 0.25, "peaks": false, "trajectory_state": false}').settings
    assert (settings.question_share, settings.peaks, settings.trajectory_state) == (0.25, False, False)
    assert from_flags("distinct", '{"beside_peak": 0}').settings.beside_peak == 0
    assert from_flags("star", '{"kept_before": 1}').settings.kept_before == 1
    assert from_flags("star").current_last and not from_flags("star", '{"current_last": false}').current_last


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"seed": -1}', "seed -1"),
        ('{"seed": true}', "seed True"),
        ('{"frame_split": "age"}', "one of score, size"),
        ('{"question_share": 1.5}', r"question_share 1.5 must be a number in \[0, 1\]"),
        ('{"question_share": true}', "question_share True"),
        ('{"beside_peak": -0.1}', r"beside_peak -0.1 must be a number in \[0, 1\]"),
        ('{"beside_peak": false}', "beside_peak False"),
        ('{"beside_peak": null}', "beside_peak None"),
        ('{"kept_before": 0}', r"kept_before 0 must be a number in \(0, 1\]"),
        ('{"kept_before": 1.1}', "kept_before 1.1"),
        ('{"kept_before": true}', "kept_before True"),
        ('{"current_last": 0}', "current_last 0 must be true or false"),
        ('{"shrink_before_evict": "yes"}', "shrink_before_evict 'yes' must be true or false"),
        ('{"peaks": 1}', "peaks 1 must be true or false"),
        ('{"trajectory_state": "no"}', "trajectory_state 'no' must be true or false"),
    ],
)
def test_bad_values_are_refused(config: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_flags("random", config)


@pytest.mark.parametrize("wants", [{"norms": Norms.INPUT}, {"queries": Queries.ALL}], ids=["norms", "sums"])
def test_a_policy_per_head_cannot_have_records_of_a_layer(wants: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="drop per_head"):
        type("Policy", (KVPolicy,), {"per_head": True, **wants})
