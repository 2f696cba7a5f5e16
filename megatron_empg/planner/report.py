"""A plan as tables for the terminal, and as JSON."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.gpus import GPUS
from megatron_empg.planner.search import GIB, KEYS, LayoutCandidate, LayoutPlan, plan
from megatron_empg.planner.shape import ModelShape, shape_of
from megatron_empg.recipe import RecipeError, load_recipe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

SHOWN = 12
"""Rows of each table; JSON has them all."""
WIDTH = 172
"""Where the output is not a terminal."""
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "transfer", "allowance")


def print_plan(
    path: Path,
    overrides: list[str],
    gpus: int,
    gpu_memory_gib: float | None,
    gpu_name: str,
    trainer_gpus: int | None,
    *,
    as_json: bool,
) -> bool:
    """Print the plan of the recipe at ``path``; whether it fits as it stands. Raises RecipeError."""
    gpu = GPUS.get(gpu_name.upper())
    if gpu is None:
        raise RecipeError(f"--gpu is {gpu_name}; allowed: {', '.join(GPUS)}")
    recipe = load_recipe(path, overrides)
    shape = shape_of(recipe.model.path)
    config = shape.config
    if gpu_memory_gib is None:
        gpu_memory_gib = gpu.memory_gib
    memory = gpu_memory_gib * GIB
    found = plan(recipe, config, gpus=gpus, gpu_memory=memory, gpu=gpu, trainer_gpus=trainer_gpus)
    if as_json:
        print(to_json(found, shape))
    else:
        console = console_for_tables()
        if shape.note:
            console.print(shape.note, highlight=False)
        for part in [*tables(found), *overlap_notes(recipe.rollout.max_lag), verdict(found)]:
            console.print(part, highlight=False)
    return not found.own_faults


def console_for_tables() -> "Console":
    """A console as wide as the terminal, or wide enough for every table where there is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(soft_wrap=False)
    return Console(width=WIDTH, soft_wrap=False)


def to_json(plan: LayoutPlan, shape: ModelShape) -> str:
    """Memory in GiB, time in seconds."""
    engine: dict[str, float] = {}
    for name in ("weights", "kv_cache", "workspace", "available"):
        engine[name] = _gib(getattr(plan.engine, name))
    engine["longest_episodes"] = plan.engine.episodes
    own = {"fits": not plan.own_faults, "faults": plan.own_faults, **_candidate(plan.own)}
    nearest_fix: dict[str, object] = {}
    if plan.own_faults:
        nearest_fix = plan.nearest
    fitting = list(map(_candidate, plan.fitting))
    others = []
    for candidate in plan.others:
        others.append({**_candidate(candidate), "faults": candidate.faults})
    found = {
        "model": {"shape": shape.origin, "note": shape.note},
        "gpus": plan.gpus,
        "trainer_gpus": plan.trainer_gpus,
        "gpu": plan.gpu.name,
        "gpu_memory_gib": plan.gpu_memory / GIB,
        "engine": engine,
        "host_memory_gib": _gib(plan.host_memory),
        "recipe": own,
        "nearest_fix": nearest_fix,
        "fitting": fitting,
        "others": others,
    }
    return json.dumps(found, indent=2)


def _candidate(candidate: LayoutCandidate) -> dict[str, Any]:
    stages = []
    for stage in candidate.stages:
        stages.append({kind: _gib(size) for kind, size in asdict(stage).items()})
    seconds: dict[str, float] = {}
    if candidate.time:
        seconds = {**asdict(candidate.time), "total": candidate.time.total}
    return {
        "actor": {key: getattr(candidate.actor, key) for key in KEYS},
        "memory_gib": stages,
        "seconds": seconds,
    }


def _gib(value: float) -> float:
    return round(value / GIB, 3)


def tables(plan: LayoutPlan) -> "list[RenderableType]":
    """What a terminal shows."""
    from rich.table import Table

    engines = plan.gpus - plan.trainer_gpus
    shown: list[Any] = [
        f"{plan.gpus} x {plan.gpu.name} of {plan.gpu_memory / GIB:g} GiB: {plan.trainer_gpus} for the trainer, "
        f"{engines} for the engines. Memory in GiB per rank, at its fullest pipeline stage; times are estimates."
    ]
    own = _layout_table("The recipe's own layout")
    _add(own, plan.own)
    shown += [own, _engine_line(plan), _host_line(plan)]
    if plan.fitting:
        fitting = _layout_table(f"Layouts that fit, best first ({len(plan.fitting)})")
        for candidate in plan.fitting[:SHOWN]:
            _add(fitting, candidate)
        shown.append(fitting)
    nearest = [candidate for candidate in plan.others if candidate.stages]
    if nearest:
        short = Table("layout", "why it does not fit, with full recomputation", title="Layouts that do not fit")
        for candidate in nearest[:SHOWN]:
            short.add_row(layout_name(candidate.actor), candidate.faults[0])
        shown.append(short)
    reasons: Counter[str] = Counter()
    for candidate in plan.others:
        if not candidate.stages:
            reasons.update(candidate.faults)
    if reasons:
        illegal = Table("layouts", "rule", title="Layouts that cannot be")
        for fault, count in reasons.most_common(SHOWN):
            illegal.add_row(str(count), fault)
        shown.append(illegal)
    return shown


def overlap_notes(max_lag: int) -> list[str]:
    """What the times leave out of a recipe with `rollout.max_lag`."""
    if not max_lag:
        return []
    return [
        f"rollout.max_lag is {max_lag}: groups are played beside score, update and sync, so that a step takes "
        "about the longer of the rollout and the other three together; the times above add them up."
    ]


def verdict(plan: LayoutPlan) -> str:
    """Whether the recipe fits as it stands, and the nearest fix if not."""
    if not plan.own_faults:
        return "The recipe fits."
    lines = ["The recipe does not fit:", *(f"  - {fault}" for fault in plan.own_faults)]
    if plan.engine.fault:
        return "\n".join([*lines, "Raise engines.tensor_parallel, or lower rollout.max_episode_tokens."])
    if not plan.nearest:
        return "\n".join([*lines, "No layout of these GPUs fits; give more of them, or shorter episodes."])
    fix = " ".join(f"{key}={str(value).lower()}" for key, value in plan.nearest.items())
    return "\n".join([*lines, f"Nearest fix: {fix}"])


def layout_name(actor: ActorConfig) -> str:
    """The layout in the form TP8 PP2x2 CP2 DP1: sizes, with the chunks of a pipeline stage after its size."""
    chunks = experts = ""
    if actor.virtual_pipeline > 1:
        chunks = f"x{actor.virtual_pipeline}"
    if actor.expert_parallel > 1:
        experts = f" EP{actor.expert_parallel}"
    return (
        f"TP{actor.tensor_parallel} PP{actor.pipeline_parallel}{chunks} CP{actor.context_parallel} "
        f"DP{actor.data_parallel}{experts}"
    )


def _engine_line(plan: LayoutPlan) -> str:
    engine, time = plan.engine, plan.own.time
    times = ""
    if time:
        times = f" Rollout {time.rollout:.0f} s, weight sync {time.sync:.0f} s."
    cache = f"key-value cache {engine.kv_cache / GIB:.1f} ({engine.episodes:.1f} longest episodes per engine)"
    workspace = f"workspace {engine.workspace / GIB:.0f} of {engine.available / GIB:.1f} GiB"
    return f"Engine GPU: weights {engine.weights / GIB:.1f}, {cache}, {workspace}.{times}"


def _host_line(plan: LayoutPlan) -> str:
    return f"Main memory of a trainer node while a checkpoint is saved: {plan.host_memory / GIB:.0f} GiB."


def _layout_table(title: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for name in ("layout", "recompute"):
        table.add_column(name, no_wrap=True)
    for name in (*MEMORY, "total", "score s", "update s", "bubble", "step s"):
        table.add_column(name, justify="right")
    return table


def _add(table: "Table", candidate: LayoutCandidate) -> None:
    actor = candidate.actor
    row = [layout_name(actor), actor.recomputation]
    if candidate.stages and candidate.time:
        memory, time = candidate.stages[candidate.fullest], candidate.time
        row += [f"{getattr(memory, kind) / GIB:.1f}" for kind in (*MEMORY, "total")]
        row += [f"{time.score:.0f}", f"{time.update:.0f}", f"{time.bubble:.0%}", f"{time.total:.0f}"]
    table.add_row(*row)
