import math

import pytest

from megatron_empg.rollout.engine_counters import COUNTERS, HISTOGRAMS, EngineCounters, Histogram
from tests.support.engine_pages import page

FULL = {name.removeprefix("vllm:"): 10.0 for name in COUNTERS.values()}
TIMES = {name.removeprefix("vllm:"): [0.5, 1.5, 3.0] for name in HISTOGRAMS.values()}


def test_a_whole_page_is_read() -> None:
    read = EngineCounters.read(page(FULL | {"generation_tokens_total": 123.0}, TIMES))
    assert read.missing == []
    assert (read.generated_tokens, read.prompt_tokens, read.preemptions) == (123.0, 10.0, 10.0)
    assert read.first_token == Histogram(3.0, 5.0, {1.0: 1.0, 2.0: 2.0, 4.0: 3.0, math.inf: 3.0})


def test_the_parts_of_one_engine_are_added() -> None:
    read = EngineCounters.read(page(FULL, TIMES, engines=3))
    assert read.generated_tokens == 30.0
    assert read.waiting is not None
    assert (read.waiting.count, read.waiting.total, read.waiting.not_above[2.0]) == (9.0, 15.0, 6.0)


def test_what_a_page_lacks_is_named_and_not_guessed() -> None:
    read = EngineCounters.read(page({"generation_tokens_total": 5.0}))
    assert read.generated_tokens == 5.0
    assert read.cache_hits is None
    assert read.first_token is None
    assert "vllm:prefix_cache_hits_total" in read.missing
    assert "vllm:time_to_first_token_seconds" in read.missing
    assert "vllm:generation_tokens_total" not in read.missing


@pytest.mark.parametrize("text", ["", "not found", "<html>502</html>", "vllm:generation_tokens_total", "{} 1"])
def test_what_is_no_page_has_nothing(text: str) -> None:
    assert len(EngineCounters.read(text).missing) == len(COUNTERS) + len(HISTOGRAMS)


def test_what_was_counted_since() -> None:
    earlier = EngineCounters.read(page(FULL, TIMES))
    later = {name: [*values, 1.0, 9.0] for name, values in TIMES.items()}
    counted = EngineCounters.read(page(FULL | {"generation_tokens_total": 17.0}, later)).since(earlier)
    assert (counted.generated_tokens, counted.prompt_tokens) == (7.0, 0.0)
    assert counted.running == Histogram(2.0, 10.0, {1.0: 1.0, 2.0: 1.0, 4.0: 1.0, math.inf: 2.0})


def test_an_engine_that_began_anew_has_counted_all_of_it() -> None:
    earlier = EngineCounters.read(page(FULL, TIMES))
    anew = EngineCounters.read(
        page(FULL | {"generation_tokens_total": 4.0}, {"request_queue_time_seconds": [2.0]})
    )
    counted = anew.since(earlier)
    assert counted.generated_tokens == 4.0
    assert counted.waiting is not None
    assert counted.waiting.total == 2.0
    assert counted.first_token is None


def test_quantiles_lie_in_their_bucket() -> None:
    times = Histogram(4.0, 7.0, {1.0: 2.0, 2.0: 3.0, 4.0: 4.0, math.inf: 4.0})
    assert times.mean == 1.75
    assert times.quantile(0.5) == 1.0
    assert times.quantile(0.625) == 1.5, "half way through the bucket from 1 to 2"
    assert times.quantile(1.0) == 4.0
    beyond = Histogram(2.0, 99.0, {1.0: 1.0, math.inf: 2.0})
    assert beyond.quantile(0.95) == 1.0, "the last bound that is known"
    nothing = Histogram(0.0, 0.0, {1.0: 0.0})
    assert nothing.mean is None
    assert nothing.quantile(0.5) is None
