"""Waits lie inside each other, whatever a recipe says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.common.limits import LimitsConfig
from megatron_empg.common.waits import Waits, nested_waits


def limits(batch: int = 3600, sync: int = 600, **given_waits: float) -> LimitsConfig:
    return LimitsConfig(rollout_timeout=batch, sync_timeout=sync, **given_waits)


def assert_nested(waits: Waits) -> None:
    assert waits.request < waits.turn < waits.episode < waits.round < waits.batch < waits.phase < waits.collective
    assert waits.environment < waits.episode
    assert waits.sync < waits.phase


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.booleans())
def test_what_is_not_given_lies_inside_what_is(batch: int, sync: int, several: bool) -> None:
    assert_nested(nested_waits(limits(batch, sync), several_rounds=several))


def test_two_tries_of_an_episode_fit_into_a_round() -> None:
    waits = nested_waits(limits(), several_rounds=True)
    assert waits.episode * 2 <= waits.round
    assert waits.round * 2 <= waits.batch


@pytest.mark.parametrize(
    ("key", "outer"),
    [
        ("request_timeout", "turn_timeout"),
        ("turn_timeout", "episode_timeout"),
        ("environment_timeout", "episode_timeout"),
        ("episode_timeout", "round_timeout"),
        ("round_timeout", "rollout_timeout"),
    ],
)
def test_a_wait_as_long_as_the_one_it_lies_in_is_refused_by_name(key: str, outer: str) -> None:
    with pytest.raises(ValueError, match=rf"limits.{key} is 9000 s.*limits.{outer}"):
        nested_waits(limits(**{key: 9000.0}), several_rounds=False)


def test_a_phase_shorter_than_a_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limits.rollout_timeout is 3600 s.*limits.phase_timeout"):
        nested_waits(limits(phase_timeout=100.0), several_rounds=False)


def test_a_request_must_outlast_a_synchronisation_where_episodes_play_on_meanwhile() -> None:
    says = r"limits.sync_timeout is 500 s.*rollout.max_lag.*limits.request_timeout \(500 s\).*lower the first"
    with pytest.raises(ValueError, match=says):
        nested_waits(limits(sync=500, request_timeout=500.0), several_rounds=False, streams=True)
    assert nested_waits(limits(sync=499, request_timeout=500.0), several_rounds=False, streams=True).sync == 499
    assert nested_waits(limits(sync=900, request_timeout=500.0), several_rounds=False).sync == 900
