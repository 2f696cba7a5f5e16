"""The process groups of a Megatron layout, in Megatron's rank order (tp-cp-ep-dp-pp)."""

import math
from dataclasses import dataclass, fields

import numpy as np

from megatron_empg.common.errors import EmpgError


class LayoutError(EmpgError, RuntimeError):
    """A layout that does not fit the ranks."""


@dataclass(frozen=True)
class Layout:
    """Parallel sizes; what is left of the ranks is data parallel."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read ``tensor=2,pipeline=2``. Raises LayoutError naming the part at fault."""
        allowed = [field.name for field in fields(cls)]
        sizes: dict[str, int] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in allowed or not value.isdigit() or int(value) < 1:
                raise LayoutError(
                    f"--layout has {part!r}; write NAME=SIZE with NAME one of {', '.join(allowed)} and SIZE at "
                    "least 1 (data parallel is what is left of the ranks)"
                )
            sizes[name] = int(value)
        return cls(**sizes)

    def groups(self, world_size: int) -> dict[str, list[list[int]]]:
        """Rank lists by kind: the groups `initialize_model_parallel` makes, expert tensor size 1.

        Kinds of size 1 and those equal to an earlier one are left out. Raises LayoutError when it does not fit.
        """
        model = self.tensor * self.context * self.pipeline
        if world_size % model:
            raise LayoutError(
                f"the layout (tensor {self.tensor} x context {self.context} x pipeline {self.pipeline}) wants a "
                f"multiple of {model} ranks; there are {world_size}"
            )
        data = world_size // model
        stage = world_size // self.pipeline
        if stage % self.expert:
            raise LayoutError(f"expert {self.expert} does not divide the {stage} ranks of a pipeline stage")
        dense = {"tensor": self.tensor, "context": self.context, "data": data, "pipeline": self.pipeline}
        sparse = {"expert": self.expert, "data": stage // self.expert, "pipeline": self.pipeline}
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
