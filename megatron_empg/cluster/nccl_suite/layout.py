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
    wanted = {
        "world": [list(range(world_size))],
        "tensor": _split(dense, {"tensor"}),
        "context": _split(dense, {"context"}),
        "data": _split(dense, {"data"}),
        "data and context": _split(dense, {"data", "context"}),
        "tensor and context": _split(dense, {"tensor", "context"}),
        "pipeline": _split(dense, {"pipeline"}),
        "tensor and pipeline": _split(dense, {"tensor", "pipeline"}),
        "expert": _split(sparse, {"expert"}),
        "expert data": _split(sparse, {"data"}),
    }
    kept: dict[str, list[list[int]]] = {}
    for kind, groups in wanted.items():
        if kind == "world" or (len(groups[0]) > 1 and groups not in kept.values()):
            kept[kind] = groups
    return kept


def _split(sizes: dict[str, int], together: set[str]) -> list[list[int]]:
    """Groups of the ranks that differ only in the dimensions ``together``; the first dimension varies fastest."""
    names = list(sizes)
    ranks = np.arange(math.prod(sizes.values())).reshape([sizes[name] for name in reversed(names)])
    inner = [len(names) - 1 - at for at in reversed(range(len(names))) if names[at] in together]
    outer = [axis for axis in range(len(names)) if axis not in inner]
    length = math.prod(ranks.shape[axis] for axis in inner)
    return ranks.transpose(outer + inner).reshape(-1, length).tolist()
