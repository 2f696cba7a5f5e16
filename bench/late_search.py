"""Deep Search whose answers come late, for benchmarks in which engines wait for tools."""

import asyncio
import os
import secrets
from random import Random

from megatron_empg.environments.base import StepResult, Task
from megatron_empg.environments.deep_search.environment import DeepSearchEnvironment
from megatron_empg.environments.deep_search.source import DeepSearch

MEDIAN_VARIABLE = "BENCH_SEARCH_SECONDS"
"""The environment variable with the median of an answer's delay, in seconds; 3 where it is not set."""
MEDIAN = float(os.environ.get(MEDIAN_VARIABLE, "3"))
DELAYS = tuple(round(MEDIAN * Random(number).lognormvariate(0.0, 0.6), 3) for number in range(200))
"""Seconds, a tenth of them above twice the median. Each answer is delayed by one of them, drawn anew."""


class LateEnvironment(DeepSearchEnvironment):
    """The same, with answers that come late."""

    async def step(self, action: str) -> StepResult:
        await asyncio.sleep(Random(secrets.randbits(64)).choice(DELAYS))
        return await super().step(action)


class LateDeepSearch(DeepSearch):
    """Deep Search with a slow environment."""

    def make(self, task: Task) -> DeepSearchEnvironment:
        made = super().make(task)
        made.__class__ = LateEnvironment
        return made


LATE_SEARCH = f"{__name__}:{LateDeepSearch.__name__}"
"""What `environment.name` says for it."""
