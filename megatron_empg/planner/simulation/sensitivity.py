"""What a lag brings when the planner's assumptions are others: each by itself, a share less and more."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from megatron_empg.planner.assumptions import PLANNED, Assumptions
from megatron_empg.planner.simulation.assumed import Machine, assumed_setting
from megatron_empg.planner.simulation.loop import simulate, steps_to_count
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.recipe import Recipe

VARIED_BY = 0.3
SHARES = ("mfu", "prefill_mfu", "decode_bandwidth", "episode_share", "engine_utilisation")
"""Assumptions that cannot be above 1."""
STEPS = 16
"""Simulated of each, above what is not counted."""


@dataclass(frozen=True)
class LagGain:
    """Seconds of a trained episode at lag 0 and with a lag, under one assumption changed."""

    assumption: str
    """Empty where none is changed."""
    value: float
    without: float
    with_lag: float

    @property
    def gain(self) -> float:
        return self.without / self.with_lag


def gains(recipe: Recipe, machine: Machine, lagged: SimulationSetting, steps: int = STEPS) -> Iterator[LagGain]:
    """The gain as assumed, then with each assumption varied by `VARIED_BY`. `lagged`: lag and concurrency."""
    yield _gain(recipe, machine, lagged, steps, "", 0.0, PLANNED)
    for field in fields(Assumptions):
        for factor in (1 - VARIED_BY, 1 + VARIED_BY):
            value = getattr(PLANNED, field.name) * factor
            if field.name in SHARES:
                value = min(value, 1.0)
            varied = replace(PLANNED, **{field.name: value})
            yield _gain(recipe, machine, lagged, steps, field.name, value, varied)


def _gain(
    recipe: Recipe,
    machine: Machine,
    lagged: SimulationSetting,
    steps: int,
    name: str,
    value: float,
    assumed: Assumptions,
) -> LagGain:
    plain = assumed_setting(recipe, machine, assumed)
    changed = replace(plain, max_lag=lagged.max_lag, concurrency=lagged.concurrency, slots=lagged.slots)
    without = simulate(plain, steps=steps_to_count(steps, plain))
    with_lag = simulate(changed, steps=steps_to_count(steps, changed))
    return LagGain(name, value, without.episode_seconds, with_lag.episode_seconds)
