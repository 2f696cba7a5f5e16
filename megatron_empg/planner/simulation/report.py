"""A simulation as tables for the terminal, and as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.common.gpus import GPUS
from megatron_empg.planner.assumptions import PLANNED
from megatron_empg.planner.report import console_for_tables, layout_name
from megatron_empg.planner.search import GIB
from megatron_empg.planner.shape import shape_of
from megatron_empg.planner.simulation.assumed import Machine, assumed_setting
from megatron_empg.planner.simulation.choice import HEADROOM, SimulatedChoice, choices
from megatron_empg.planner.simulation.files import read_latencies, read_rates
from megatron_empg.planner.simulation.loop import simulate, steps_to_count
from megatron_empg.planner.simulation.recorded import read_recorded
from megatron_empg.planner.simulation.result import SimulationResult
from megatron_empg.planner.simulation.sensitivity import VARIED_BY, LagGain, gains
from megatron_empg.planner.simulation.setting import SimulationSetting
from megatron_empg.recipe import Recipe, RecipeError, load_recipe

if TYPE_CHECKING:
    from rich.table import Table

STEPS = 48
"""Simulated and counted."""


@dataclass(frozen=True)
class SimulationOptions:
    """What the command line asks of a simulation."""

    max_lag: int | None = None
    """None: the recipe's."""
    run: Path | None = None
    """Whose recorded lengths, latencies and trainer's speed are used."""
    engine_rates: Path | None = None
    tool_latency: Path | None = None
    vary: bool = False
    choose: bool = False


def print_simulation(
    path: Path,
    overrides: list[str],
    gpu_memory_gib: float | None,
    gpu_name: str,
    wanted: SimulationOptions,
    *,
    as_json: bool,
) -> None:
    """Simulate the recipe at ``path`` and print what came of it. Raises RecipeError."""
    gpu = GPUS.get(gpu_name.upper())
    if gpu is None:
        raise RecipeError(f"--gpu is {gpu_name}; allowed: {', '.join(GPUS)}")
    recipe = load_recipe(path, overrides)
    shape = shape_of(recipe.model.path)
    if gpu_memory_gib is None:
        gpu_memory_gib = gpu.memory_gib
    machine = Machine(shape.config, gpu, gpu_memory_gib * GIB)
    max_lag = wanted.max_lag
    if max_lag is None:
        max_lag = recipe.rollout.max_lag
    if wanted.vary and not max_lag:
        raise RecipeError("--vary compares a lag with none, and the lag is 0; give --max-lag or rollout.max_lag")
    without, basis = setting_of(recipe, machine, wanted)
    outcomes, varied, chosen = [], None, None
    for lag in lags_up_to(max_lag):
        setting = replace(without, max_lag=lag)
        outcomes.append(simulate(setting, steps=steps_to_count(STEPS, setting)))
    if wanted.vary:
        varied = list(gains(recipe, machine, outcomes[-1].setting))
    gpus = recipe.actor.world_size + recipe.engines.world_size
    if wanted.choose:
        chosen = list(choices(recipe, machine, gpus, lags_up_to(max_lag)))
    if as_json:
        print(to_json(recipe, basis, outcomes, varied, chosen))
        return
    console = console_for_tables()
    for note in (shape.note, basis, f"rollout.max_lag of the recipe is {recipe.rollout.max_lag}."):
        if note:
            console.print(note, highlight=False)
    console.print(outcome_table(outcomes), highlight=False)
    if varied is not None:
        console.print(gain_table(varied, max_lag), highlight=False)
    if chosen:
        console.print(choice_table(chosen), highlight=False)
    elif chosen is not None:
        console.print(
            f"No split of {gpus} GPUs into whole trainer nodes and engines leaves {HEADROOM / GIB:g} GiB of each.",
            highlight=False,
        )


def setting_of(recipe: Recipe, machine: Machine, wanted: SimulationOptions) -> tuple[SimulationSetting, str]:
    """The recipe at lag 0, and what it rests on, in words. Raises RecipeError."""
    setting = assumed_setting(recipe, machine)
    basis = ["lengths, latencies and the trainer's speed by the planner's assumptions"]
    given = None
    if wanted.tool_latency:
        given = read_latencies(wanted.tool_latency)
    if wanted.run:
        recorded = read_recorded(wanted.run, recipe)
        if given:
            recorded = replace(recorded, latencies=given)
        setting = recorded.applied(setting, (PLANNED.turn_seconds,))
        answers = "latencies assumed"
        if recorded.latencies:
            answers = f"{len(recorded.latencies)} latencies"
        basis = [
            f"lengths of {recorded.episodes} episodes, {answers}, the trainer's speed in {recorded.steps} "
            f"steps and {recorded.kept_share:.0%} of groups kept, of {wanted.run}"
        ]
    elif given:
        raise RecipeError("--tool-latency goes with --from; of a recipe alone, give lengths of a run too")
    if wanted.engine_rates:
        setting = replace(setting, rates=read_rates(wanted.engine_rates))
        basis.append(f"engines as measured in {wanted.engine_rates}")
    else:
        basis.append(f"engines by the planner's assumptions of {machine.gpu.name}")
    return setting, f"Simulated with {'; '.join(basis)}."


def lags_up_to(most: int) -> list[int]:
    """0, then doubling up to the most."""
    lags = [0]
    following = 1
    while following < most:
        lags.append(following)
        following *= 2
    if most:
        lags.append(most)
    return lags


def outcome_table(outcomes: Sequence[SimulationResult]) -> "Table":
    """A row for each lag."""
    from rich.table import Table

    table = Table(title=f"Simulated steps (means of {len(outcomes[0].steps)} or more)")
    for name in (
        *("lag", "step s", "waits s", "works s", "s per episode", "by lag 0", "trainer idle", "engines idle"),
        *("running", "under half", "tail", "stale"),
    ):
        table.add_column(name, justify="right")
    table.add_column("staleness of episodes")
    for outcome in outcomes:
        setting = outcome.setting
        table.add_row(
            str(setting.max_lag),
            f"{outcome.step_seconds:.3g}",
            f"{outcome.waited_seconds:.3g}",
            f"{outcome.worked_seconds:.3g}",
            f"{outcome.episode_seconds:.3g}",
            f"{outcomes[0].episode_seconds / outcome.episode_seconds:.2f}",
            f"{outcome.trainer_idle:.0%}",
            f"{outcome.engines_idle:.0%}",
            f"{outcome.running:.0f}",
            f"{outcome.under_half:.0%}",
            f"{outcome.tail:.2f}",
            f"{outcome.stale_share:.1%}",
            shares(outcome.staleness),
        )
    return table


def shares(histogram: dict[int, float]) -> str:
    """The shares of a histogram in the form ``0: 12% 1: 88%``."""
    return " ".join(f"{versions}: {share:.0%}" for versions, share in histogram.items())


def gain_table(varied: Iterable[LagGain], lag: int) -> "Table":
    """A row for each assumption changed."""
    from rich.table import Table

    table = Table(title=f"Lag {lag} by lag 0, each assumption {VARIED_BY:.0%} less and more")
    table.add_column("assumption", no_wrap=True)
    for name in ("value", "s per episode, lag 0", f"lag {lag}", "gain"):
        table.add_column(name, justify="right")
    for gain in varied:
        name, value = "as assumed", ""
        if gain.assumption:
            name, value = gain.assumption, f"{gain.value:.4g}"
        table.add_row(name, value, f"{gain.without:.3g}", f"{gain.with_lag:.3g}", f"{gain.gain:.2f}")
    return table


def choice_table(chosen: Iterable[SimulatedChoice]) -> "Table":
    """A row for each split, batch and lag, least seconds of a trained episode first."""
    from rich.table import Table

    table = Table(title="Splits of the same nodes; fastest per trained episode first")
    for name in ("trainer nodes", "engines", "layout", "recompute"):
        table.add_column(name, no_wrap=True)
    for name in ("groups", "lag", "step s", "s per episode", "trainer idle", "engines idle"):
        table.add_column(name, justify="right")
    for choice in sorted(chosen, key=attrgetter("outcome.episode_seconds")):
        split, outcome = choice.split, choice.outcome
        table.add_row(
            str(split.trainer_nodes),
            str(split.engines),
            layout_name(split.actor),
            split.actor.recomputation,
            str(outcome.setting.groups),
            str(outcome.setting.max_lag),
            f"{outcome.step_seconds:.0f}",
            f"{outcome.episode_seconds:.3f}",
            f"{outcome.trainer_idle:.0%}",
            f"{outcome.engines_idle:.0%}",
        )
    return table


def to_json(
    recipe: Recipe,
    basis: str,
    outcomes: Sequence[SimulationResult],
    varied: Sequence[LagGain] | None,
    chosen: Sequence[SimulatedChoice] | None,
) -> str:
    """Everything, in seconds and shares; null for what was not asked for."""
    found: dict[str, Any] = {
        "basis": basis,
        "recipe_max_lag": recipe.rollout.max_lag,
        "lags": [of_outcome(outcome) for outcome in outcomes],
        "varied": None,
        "splits": None,
    }
    if varied is not None:
        found["varied"] = [of_gain(gain) for gain in varied]
    if chosen is not None:
        found["splits"] = [of_choice(choice) for choice in chosen]
    return json.dumps(found, indent=2)


def of_gain(gain: LagGain) -> dict[str, Any]:
    """A lag by lag 0, under one assumption."""
    return {
        "assumption": gain.assumption,
        "value": gain.value,
        "lag_0": gain.without,
        "lagged": gain.with_lag,
        "gain": gain.gain,
    }


def of_choice(choice: SimulatedChoice) -> dict[str, Any]:
    """A split with a batch and a lag."""
    return {
        "trainer_nodes": choice.split.trainer_nodes,
        "engines": choice.split.engines,
        "layout": layout_name(choice.split.actor),
        "recompute": choice.split.actor.recomputation,
        **of_outcome(choice.outcome),
    }


def of_outcome(outcome: SimulationResult) -> dict[str, Any]:
    """One simulated setting."""
    setting = outcome.setting
    return {
        "max_lag": setting.max_lag,
        "groups": setting.groups,
        "concurrency": setting.concurrency,
        "step_seconds": outcome.step_seconds,
        "waited_seconds": outcome.waited_seconds,
        "worked_seconds": outcome.worked_seconds,
        "episode_seconds": outcome.episode_seconds,
        "trainer_idle": outcome.trainer_idle,
        "engines_idle": outcome.engines_idle,
        "running": outcome.running,
        "under_half": outcome.under_half,
        "tail": outcome.tail,
        "stale": outcome.stale_share,
        "length_bias": outcome.length_bias,
        "staleness": outcome.staleness,
        "token_staleness": outcome.token_staleness,
    }
