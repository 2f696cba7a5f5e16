"""The process groups of a Megatron layout, in Megatron's rank order (tp-cp-ep-dp-pp)."""

import math

import numpy as np

from megatron_empg.actor.config import ActorConfig
from megatron_empg.common.errors import EmpgError


class LayoutError(EmpgError, RuntimeError):
    """A layout that does not fit the ranks."""


SIZES = {
    "tensor": "tensor_parallel",
    "pipeline": "pipeline_parallel",
    "context": "context_parallel",
    "expert": "expert_parallel",
}
"""What ``--layout`` calls the actor's sizes; what is left of the ranks is data parallel."""
_DENSE_KINDS: dict[str, tuple[str, ...]] = {
    "tensor": ("tensor",),
    "context": ("context",),
    "data": ("data",),
    "data and context": ("data", "context"),
    "tensor and context": ("tensor", "context"),
    "pipeline": ("pipeline",),
    "tensor and pipeline": ("tensor", "pipeline"),
}
"""Kinds of groups, and in which dimensions their ranks differ."""
_SPARSE_KINDS: dict[str, tuple[str, ...]] = {"expert": ("expert",), "expert data": ("data",)}
"""The same of the layout of experts."""


def parse_layout(text: str) -> ActorConfig:
    """Read ``tensor=2,pipeline=2``. Raises LayoutError naming the part at fault."""
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in SIZES or not value.isdigit() or int(value) < 1:
            raise LayoutError(
                f"--layout has {part!r}; write NAME=SIZE with NAME one of {', '.join(SIZES)} and SIZE at least 1 "
                "(data parallel is what is left of the ranks)"
            )
        sizes[SIZES[name]] = int(value)
    return ActorConfig.model_validate(sizes)


def rank_groups(actor: ActorConfig, world_size: int) -> dict[str, list[list[int]]]:
    """Rank lists by kind: the groups that `initialize_model_parallel` makes, expert tensor size 1.

    Data parallel is what is left of the ranks. Kinds of size 1 and those equal to an earlier one are left out.
    Raises LayoutError when the actor's layout does not fit the ranks.
    """
    tensor, pipeline = actor.tensor_parallel, actor.pipeline_parallel
    context, expert = actor.context_parallel, actor.expert_parallel
    model = tensor * context * pipeline
    if world_size % model:
        raise LayoutError(
            f"the layout (tensor {tensor} x context {context} x pipeline {pipeline}) needs a multiple of {model} "
            f"ranks; there are {world_size}"
        )
    data = world_size // model
    stage = world_size // pipeline
    if stage % expert:
        raise LayoutError(f"expert {expert} does not divide the {stage} ranks of a pipeline stage")
    dense = {"tensor": tensor, "context": context, "data": data, "pipeline": pipeline}
    sparse = {"expert": expert, "data": stage // expert, "pipeline": pipeline}
    wanted = {kind: _split(dense, together) for kind, together in _DENSE_KINDS.items()}
    wanted |= {kind: _split(sparse, together) for kind, together in _SPARSE_KINDS.items()}
    kept = {"world": [list(range(world_size))]}
    for kind, groups in wanted.items():
        if len(groups[0]) > 1 and groups not in kept.values():
            kept[kind] = groups
    return kept


def _split(sizes: dict[str, int], together: tuple[str, ...]) -> list[list[int]]:
    """Groups of the ranks that differ only in the dimensions ``together``; the first dimension varies fastest."""
    # numpy's last axis varies fastest, so the dimensions are its axes in reverse.
    axes = list(reversed(sizes))
    shape = [sizes[name] for name in axes]
    ranks = np.arange(math.prod(shape)).reshape(shape)
    inner = [axis for axis, name in enumerate(axes) if name in together]
    outer = [axis for axis, name in enumerate(axes) if name not in together]
    # A group's ranks then lie side by side, and are a row.
    length = math.prod(sizes[name] for name in together)
    return ranks.transpose(outer + inner).reshape(-1, length).tolist()
