"""Choosing a policy."""

from __future__ import annotations

from typing import Any

import pytest

from star_kv_sglang.config import SHARED_KEYS, PolicyConfig
from star_kv_sglang.errors import ConfigError
from star_kv_sglang.policies import policy_class, policy_keys, policy_names, policy_params
from star_kv_sglang.policies.base.interface import KVPolicy, Norms, Queries


def from_flags(policy: str, config: str | None = None) -> PolicyConfig:
    return PolicyConfig.from_flags(
        policy=policy, budget=0.1, token_budget=None, observation_window=None, policy_config=config
    )


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_can_be_chosen(name: str) -> None:
    assert from_flags(name).policy == name
    assert issubclass(policy_class(name), KVPolicy)


@pytest.mark.parametrize(("name", "instead"), [("pyramidkv", "snapkv"), ("meda", "lookm")])
def test_budgets_for_each_layer_are_refused_with_the_reason(name: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"--kv-policy {name} is not offered: .*one page table.*use {instead}"):
        from_flags(name)


def test_an_unknown_policy_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'fancy' does not exist.*distinct.*snapkv.*star"):
        from_flags("fancy")
    with pytest.raises(ValueError, match="there is no KV policy 'base'"):
        policy_class("base")


def test_own_keys_are_read() -> None:
    config = from_flags("random", '{"seed": 7, "frame_split": "score"}')
    assert (config.params, config.frame_split) == (policy_params("random", {"seed": 7}), "score")
    params: Any = from_flags("star", '{"question_share": 0.25, "peaks": false, "boost_alpha": 3}').params
    assert (params.question_share, params.peaks, params.scorer.boost_alpha) == (0.25, False, 3)
    params = from_flags("star-paper", '{"trajectory_state": false, "observation_window": 3}').params
    assert (params.trajectory_state, params.observation_window) == (False, 3)
    params = from_flags("distinct", '{"beside_peak": 0, "kept_before": 1}').params
    assert (params.beside_peak, params.kept_before) == (0, 1)
    assert from_flags("star").current_last and not from_flags("star", '{"current_last": false}').current_last


@pytest.mark.parametrize(
    ("policy", "config", "message"),
    [
        ("random", '{"seed": -1}', r"seed -1 must be a whole number in \[0, "),
        ("random", f'{{"seed": {2**70}}}', "seed 1180591620717411303424 must be"),
        ("star", f'{{"recency_weight": -{10**400}}}', "recency_weight -1000"),
        ("random", '{"seed": true}', "seed True"),
        ("random", '{"frame_split": "age"}', "one of score, size"),
        ("star", '{"question_share": 1.5}', r"question_share 1.5 must be a number in \[0, 1\]"),
        ("star", '{"question_share": true}', "question_share True"),
        ("distinct", '{"beside_peak": -0.1}', r"beside_peak -0.1 must be a number in \[0, 1\]"),
        ("distinct", '{"beside_peak": false}', "beside_peak False"),
        ("distinct", '{"beside_peak": null}', "beside_peak None"),
        ("distinct", '{"kept_before": 0}', r"kept_before 0 must be a number in \(0, 1\]"),
        ("distinct", '{"kept_before": 1.1}', "kept_before 1.1"),
        ("distinct", '{"kept_before": true}', "kept_before True"),
        ("distinct", '{"sinks": "count"}', "sinks 'count' must be one of keep, drop, off"),
        ("star", '{"sinks": true}', "sinks True must be one of keep, drop, off"),
        ("star", '{"sink_ratio": 1}', "sink_ratio 1 must be a number above 1"),
        ("star", '{"prior": 1}', "prior is 1, expected bool"),
        ("distinct", '{"peaks": 1}', "peaks 1 must be true or false"),
        ("random", '{"current_last": 0}', "current_last 0 must be true or false"),
        ("random", '{"shrink_before_evict": "yes"}', "shrink_before_evict 'yes' must be true or false"),
        ("random", '{"frame_floor": 1}', r"frame_floor 1 must be a number in \[0, 1\)"),
        ("star-paper", '{"trajectory_state": "no"}', "trajectory_state 'no' must be true or false"),
        ("star-paper", '{"boost_alpha": -1}', "boost_alpha must not be negative"),
        ("guikv", '{"boost_temperature": 0}', "boost_temperature 0 must be a number above 0"),
        ("snapkv", '{"pool_width": 4}', "pool_width 4 must be odd"),
        ("snapkv", '{"observation_window": 0}', "observation_window 0 must be a whole number, 1 or more"),
    ],
)
def test_bad_values_are_refused(policy: str, config: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_flags(policy, config)


@pytest.mark.parametrize(
    ("policy", "key", "keys"),
    [
        ("star", "trajectory_state", "beside_peak, boost"),
        ("star-paper", "question_share", "boost, boost_alpha"),
        ("distinct", "seed", "beside_peak, kept_before, observation_window, peaks"),
        ("snapkv", "boost_alpha", "observation_window, pool_width"),
        ("guikv", "prior_lambda", "boost_alpha, boost_temperature, observation_window, pool_width"),
        ("h2o", "pool_width", "observation_window"),
        ("streaming", "beside_peak", "observation_window"),
        ("random", "peaks", "observation_window, seed"),
        ("vlcache", "grid", "pool_width"),
    ],
)
def test_a_parameter_that_a_policy_ignores_is_refused_with_its_own(policy: str, key: str, keys: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{policy} has no parameter {key}; its parameters: {keys}.*every policy takes"
    ):
        from_flags(policy, f'{{"{key}": 1}}')


def test_a_window_for_a_policy_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="vlcache has no observation window"):
        PolicyConfig.from_flags(
            policy="vlcache", budget=0.1, token_budget=None, observation_window=4, policy_config=None
        )


@pytest.mark.parametrize("name", policy_names())
def test_every_parameter_of_a_policy_is_a_key_of_its_own(name: str) -> None:
    assert not set(policy_keys(name)) & set(SHARED_KEYS)
    assert policy_params(name, {}) == from_flags(name).chosen_params()


@pytest.mark.parametrize("wants", [{"norms": Norms.INPUT}, {"queries": Queries.ALL}], ids=["norms", "sums"])
def test_a_policy_per_head_cannot_have_records_of_a_layer(wants: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="drop per_head"):
        type("Policy", (KVPolicy,), {"per_head": True, **wants})


def test_a_window_prunes_whatever_the_budget_and_whoever_asks_for_it() -> None:
    def chosen(policy: str, **given: Any) -> PolicyConfig:
        flags = {"budget": None, "token_budget": None, "observation_window": None, "policy_config": None, **given}
        return PolicyConfig.from_flags(policy=policy, **flags)

    assert chosen("window").budget == 1.0
    assert chosen("window").prunes
    assert not chosen("window").prunes_again, "nothing else is pruned, when the pool runs short either"
    assert chosen("window", token_budget=9000).prunes_again
    assert chosen("star", budget=1.0, image_window=3).prunes
    assert not chosen("star", budget=1.0).prunes
    for wrong in (0, -2):
        with pytest.raises(ConfigError, match=r"--kv-image-window .* must be a whole number, 1 or more"):
            chosen("star", image_window=wrong)
    with pytest.raises(ConfigError, match=r"--kv-image-window.* need a policy"):
        chosen("full", image_window=2)
    with pytest.raises(ConfigError, match="must not hold image_window"):
        chosen("star", policy_config='{"image_window": 2}')
    with pytest.raises(ConfigError, match="window_rest 1"):
        chosen("star", policy_config='{"window_rest": 1}')


def test_windows_of_clients_are_recognised_where_something_is_pruned() -> None:
    def chosen(policy: str, **given: Any) -> PolicyConfig:
        flags = {"budget": None, "token_budget": None, "observation_window": None, "policy_config": None, **given}
        return PolicyConfig.from_flags(policy=policy, **flags)

    assert chosen("window").recognise_windows == "off"
    assert chosen("star", recognise_windows="asked", window_placeholder="[dropped]").recognise_windows == "asked"
    with pytest.raises(ConfigError, match="'some' must be one of off, asked, all"):
        chosen("window", recognise_windows="some")
    with pytest.raises(ConfigError, match="--kv-recognise-windows all needs a policy that prunes"):
        chosen("star", budget=1.0, recognise_windows="all")
    for given in ({"recognise_windows": "all"}, {"window_placeholder": "[dropped]"}):
        with pytest.raises(ConfigError, match="--kv-window-placeholder, --kv-observation-window and"):
            chosen("full", **given)
    with pytest.raises(ConfigError, match="add --kv-recognise-windows all"):
        chosen("window", window_placeholder="[dropped]")
    with pytest.raises(ConfigError, match="--kv-window-placeholder ' ' must be a text"):
        chosen("window", recognise_windows="all", window_placeholder=" ")
