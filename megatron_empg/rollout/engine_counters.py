"""What an engine has counted since it started, read from vLLM's own /metrics, which has Prometheus's text format.

The names are those of vLLM 0.32 (vllm/v1/metrics/loggers.py). Names that a page lacks are told, never guessed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Self

_LINE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_BOUND = re.compile(r'(?:^|,)le="([^"]+)"')


@dataclass(frozen=True)
class Histogram:
    """Measurements of one kind: how many, their sum, and how many are not above each bound.

    Example: two measurements, 0.5 and 3, are Histogram(2.0, 3.5, {1.0: 1.0, inf: 2.0}).
    """

    count: float
    total: float
    not_above: dict[float, float]

    @property
    def mean(self) -> float | None:
        """None where nothing was measured."""
        if self.count <= 0:
            return None
        return self.total / self.count

    def quantile(self, share: float) -> float | None:
        """Linear within the bucket that holds it, and the last finite bound where it lies above that; None where
        nothing was measured."""
        if self.count <= 0:
            return None
        wanted, low, below = share * self.count, 0.0, 0.0
        for bound in sorted(self.not_above):
            reached = self.not_above[bound]
            if reached >= wanted and reached > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (reached - below)
            low, below = (low if math.isinf(bound) else bound), reached
        return low

    def __add__(self, other: Histogram) -> Histogram:
        """The measurements of both; their bounds are the same."""
        bounds = self.not_above | other.not_above
        both = {bound: self.not_above.get(bound, 0.0) + other.not_above.get(bound, 0.0) for bound in bounds}
        return Histogram(self.count + other.count, self.total + other.total, both)

    def since(self, earlier: Histogram) -> Histogram:
        """What was measured after an earlier reading; all of it where the engine began anew since then."""
        if self.count < earlier.count:
            return self
        since = {bound: reached - earlier.not_above.get(bound, 0.0) for bound, reached in self.not_above.items()}
        return Histogram(self.count - earlier.count, self.total - earlier.total, since)


@dataclass(frozen=True)
class EngineCounters:
    """A reading of one engine's counters; None where its page has no such name."""

    generated_tokens: float | None = None
    prompt_tokens: float | None = None
    """Of all requests, those found in the cache too."""
    cached_tokens: float | None = None
    """Of the prompts' tokens, those that were not computed again."""
    cache_queries: float | None = None
    """Tokens that were looked up in the prefix cache."""
    cache_hits: float | None = None
    """Of them, those found there."""
    preemptions: float | None = None
    """Requests that lost their place in the cache and were computed anew."""
    first_token: Histogram | None = None
    """Seconds from a request's arrival to its first token."""
    waiting: Histogram | None = None
    """Seconds that ended requests waited for their turn."""
    running: Histogram | None = None
    """Seconds that ended requests were computed."""

    @classmethod
    def read(cls, page: str) -> Self:
        """Read the text of /metrics. Values that differ in labels alone are added: they are of the
        data-parallel parts of one engine."""
        numbers = _numbers(page)
        read: dict[str, Any] = {field: numbers.get(name) for field, name in COUNTERS.items()}
        read |= {field: _histogram(page, numbers, name) for field, name in HISTOGRAMS.items()}
        return cls(**read)

    @property
    def missing(self) -> list[str]:
        """Names of vLLM's that the page had not."""
        names = COUNTERS | HISTOGRAMS
        return [names[field.name] for field in fields(self) if getattr(self, field.name) is None]

    def since(self, earlier: EngineCounters) -> EngineCounters:
        """What was counted after an earlier reading of the same engine, which may have been started anew."""
        since: dict[str, Any] = {}
        for name in COUNTERS:
            since[name] = _grown(getattr(self, name), getattr(earlier, name))
        for name in HISTOGRAMS:
            since[name] = _measured(getattr(self, name), getattr(earlier, name))
        return EngineCounters(**since)


COUNTERS = {
    "generated_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "cached_tokens": "vllm:prompt_tokens_cached_total",
    "cache_queries": "vllm:prefix_cache_queries_total",
    "cache_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}
"""What vLLM calls the counters of `EngineCounters`."""
HISTOGRAMS = {
    "first_token": "vllm:time_to_first_token_seconds",
    "waiting": "vllm:request_queue_time_seconds",
    "running": "vllm:request_inference_time_seconds",
}
"""What vLLM calls its histograms, whose lines end in _bucket, _count and _sum."""
_SAMPLES = {*COUNTERS.values(), *(f"{name}_{part}" for name in HISTOGRAMS.values() for part in ("count", "sum"))}


def _numbers(page: str) -> dict[str, float]:
    """The wanted lines of a page without buckets, by name."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        parts = _LINE.match(line)
        if parts is not None and parts["name"] in _SAMPLES:
            found[parts["name"]] = found.get(parts["name"], 0.0) + _value(parts["value"])
    return found


def _histogram(page: str, numbers: dict[str, float], name: str) -> Histogram | None:
    count, total = numbers.get(f"{name}_count"), numbers.get(f"{name}_sum")
    if count is None or total is None:
        return None
    not_above: dict[float, float] = {}
    for line in page.splitlines():
        if not line.startswith(f"{name}_bucket{{"):
            continue
        parts = _LINE.match(line)
        bound = None
        if parts is not None:
            bound = _BOUND.search(parts["labels"])
        if parts is not None and bound is not None:
            upper = _value(bound[1])
            not_above[upper] = not_above.get(upper, 0.0) + _value(parts["value"])
    return Histogram(count, total, not_above)


def _value(text: str) -> float:
    """A number as Prometheus writes it; 0 for what is none."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    if math.isnan(number):
        return 0.0
    return number


def _grown(now: float | None, earlier: float | None) -> float | None:
    """A counter that fell began anew at 0."""
    if now is None:
        return None
    if earlier is None or now < earlier:
        return now
    return now - earlier


def _measured(now: Histogram | None, earlier: Histogram | None) -> Histogram | None:
    if now is None or earlier is None:
        return now
    return now.since(earlier)
