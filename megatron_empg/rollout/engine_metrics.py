"""Metrics of the engines in a step: of each, and over all of them the mean and the worst."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megatron_empg.rollout.engine_counters import EngineCounters, Histogram

TAIL = 0.95


@dataclass(frozen=True)
class EngineStep:
    """What one engine did in a step."""

    counted: EngineCounters
    """From the batch's begin to its end; a reading since then lacks what the engine does not tell."""
    playing: float
    """Seconds that the batch was played."""
    idle: float | None
    """Share of the time since the last batch ended in which no request was with the engine; None where that is not
    known, as in the first batch."""


LEAST_IS_WORST = ("tokens_per_second", "prefill_tokens_per_second", "cache_hit_share", "running")
"""Of other quantities the largest is."""


def engine_metrics(steps: Mapping[int, EngineStep]) -> dict[str, float]:
    """``engine/…`` of the engines by their numbers: QUANTITY_mean, QUANTITY_worst and, where there are several,
    NUMBER/QUANTITY. What no engine tells is absent."""
    by_engine = {number: quantities(step) for number, step in sorted(steps.items())}
    metrics: dict[str, float] = {}
    for quantity in _names(by_engine.values()):
        values = [known[quantity] for known in by_engine.values() if quantity in known]
        metrics[f"engine/{quantity}_mean"] = sum(values) / len(values)
        metrics[f"engine/{quantity}_worst"] = _worst(quantity, values)
    metrics |= _over_all([step.counted.first_token for step in steps.values()])
    if len(by_engine) > 1:
        for number, known in by_engine.items():
            for quantity, value in known.items():
                metrics[f"engine/{number}/{quantity}"] = value
    return metrics


def _worst(quantity: str, values: Sequence[float]) -> float:
    if quantity in LEAST_IS_WORST:
        return min(values)
    return max(values)


def quantities(step: EngineStep) -> dict[str, float]:
    """What is known of one engine."""
    counted, seconds = step.counted, step.playing
    computed = None
    if counted.prompt_tokens is not None and counted.cached_tokens is not None:
        computed = counted.prompt_tokens - counted.cached_tokens
    # Seconds that requests spent, by the seconds that passed: how many there were at a time, on average.
    running, waiting = _share(_total(counted.running), seconds), _share(_total(counted.waiting), seconds)
    first_token = None
    if counted.first_token is not None:
        first_token = counted.first_token.mean
    found = {
        "tokens_per_second": _share(counted.generated_tokens, seconds),
        "prefill_tokens_per_second": _share(computed, seconds),
        "cache_hit_share": _share(counted.cache_hits, counted.cache_queries),
        "running": running,
        "waiting": waiting,
        "first_token_seconds": first_token,
        "preemptions": counted.preemptions,
        "idle_share": step.idle,
    }
    return {name: value for name, value in found.items() if value is not None}


def _names(engines: Iterable[Mapping[str, float]]) -> list[str]:
    """Each quantity once, in the order in which the engines tell them."""
    return list(dict.fromkeys(itertools.chain.from_iterable(engines)))


def _over_all(first_tokens: Sequence[Histogram | None]) -> dict[str, float]:
    """The tail of the requests of all engines together."""
    known = [histogram for histogram in first_tokens if histogram is not None]
    if not known:
        return {}
    together = sum(known[1:], known[0])
    tail = together.quantile(TAIL)
    if tail is None:
        return {}
    return {"engine/first_token_seconds_q95": tail}


def _total(histogram: Histogram | None) -> float | None:
    if histogram is None:
        return None
    return histogram.total


def _share(part: float | None, whole: float | None) -> float | None:
    """None where one is not known, or there is no whole."""
    if part is None or not whole:
        return None
    return part / whole
