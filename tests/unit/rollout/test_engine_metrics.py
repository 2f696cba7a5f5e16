import math

import pytest

from megatron_empg.rollout.engine_counters import EngineCounters, Histogram
from megatron_empg.rollout.engine_metrics import EngineStep, engine_metrics
from megatron_empg.run.metric_names import by_clock, find


def times(*seconds: float) -> Histogram:
    return Histogram(
        float(len(seconds)), sum(seconds), {1.0: float(sum(s <= 1 for s in seconds)), math.inf: len(seconds)}
    )


def engine(tokens: float, idle: float | None = None) -> EngineStep:
    counted = EngineCounters(
        generated_tokens=tokens,
        prompt_tokens=100.0,
        cached_tokens=60.0,
        cache_queries=200.0,
        cache_hits=50.0,
        preemptions=0.0,
        first_token=times(0.5, 0.5),
        waiting=times(1.0, 1.0),
        running=times(4.0, 16.0),
    )
    return EngineStep(counted, 10.0, idle)


def test_of_one_engine_mean_and_worst_are_its_own() -> None:
    assert engine_metrics({0: engine(80.0, idle=0.25)}) == {
        **{f"engine/tokens_per_second_{which}": 8.0 for which in ("mean", "worst")},
        **{f"engine/prefill_tokens_per_second_{which}": 4.0 for which in ("mean", "worst")},
        **{f"engine/cache_hit_share_{which}": 0.25 for which in ("mean", "worst")},
        **{f"engine/running_{which}": 2.0 for which in ("mean", "worst")},
        **{f"engine/waiting_{which}": 0.2 for which in ("mean", "worst")},
        **{f"engine/first_token_seconds_{which}": 0.5 for which in ("mean", "worst")},
        **{f"engine/preemptions_{which}": 0.0 for which in ("mean", "worst")},
        **{f"engine/idle_share_{which}": 0.25 for which in ("mean", "worst")},
        "engine/first_token_seconds_q95": pytest.approx(0.95),
    }


def test_of_several_the_worst_is_the_slowest_and_the_idlest() -> None:
    metrics = engine_metrics({0: engine(80.0, idle=0.1), 1: engine(20.0, idle=0.7)})
    assert (metrics["engine/tokens_per_second_mean"], metrics["engine/tokens_per_second_worst"]) == (5.0, 2.0)
    assert metrics["engine/idle_share_worst"] == 0.7
    assert (metrics["engine/0/tokens_per_second"], metrics["engine/1/tokens_per_second"]) == (8.0, 2.0)
    assert metrics["engine/1/idle_share"] == 0.7


def test_what_no_engine_tells_is_absent_and_what_one_tells_is_there() -> None:
    silent = EngineStep(EngineCounters(), 10.0, None)
    assert engine_metrics({0: silent}) == {}
    assert engine_metrics({}) == {}
    metrics = engine_metrics({0: silent, 1: engine(80.0)})
    assert metrics["engine/tokens_per_second_mean"] == 8.0
    assert "engine/0/tokens_per_second" not in metrics
    assert "engine/idle_share_mean" not in metrics


def test_a_batch_of_no_time_and_a_cache_that_nobody_asked_divide_by_nothing() -> None:
    counted = EngineCounters(generated_tokens=5.0, cache_queries=0.0, cache_hits=0.0)
    assert engine_metrics({0: EngineStep(counted, 0.0, None)}) == {}


def test_each_has_an_entry_and_is_told_by_the_clock() -> None:
    written = engine_metrics({0: engine(1.0, idle=0.1), 1: engine(2.0, idle=0.2)})
    assert len(written) == 8 * 2 + 1 + 8 * 2
    assert [name for name in written if find(name) is None or not by_clock(name)] == []
