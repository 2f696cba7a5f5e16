"""Megatron-core's optimizers: three faults that show when Adam is torch's own, and what the distributed one keeps.

Without Transformer Engine and apex (on CPU, and on a GPU that lacks both) Adam is ``torch.optim.AdamW``, whose
``step`` is a tensor for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_empg.upstream.record import patch, private_api

_TESTED = ("0.16.1", "0.19.2")
_patched: set[str] = set()
"""Replacements that call what they replace, and so stand once in a process."""


@private_api(
    "megatron-core",
    symptom="a checkpoint without Adam's moments, which cannot be loaded",
    trigger="a checkpoint of an optimizer that has not stepped yet",
    why="nothing public makes Adam's state: `init_state_fn` does, and leaves out the step of torch's Adam",
    versions=_TESTED,
    can_go_when="sharded_state_dict makes the state it wants, with the step",
)
def complete_state(optimizer: Any) -> None:
    """Give each parameter, before saving, the state that Adam would make in its first step."""
    for each in parts(optimizer):
        each.init_state_fn(each.optimizer, each.config)
        if _is_torch_adam(each.optimizer):
            for state in each.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))


@private_api(
    "megatron-core",
    symptom="KeyError: 'step' in the first update after loading",
    trigger="a checkpoint of an optimizer that had not stepped, loaded with torch's Adam",
    why="Megatron leaves a step of 0 out of the state, and torch wants one",
    versions=_TESTED,
    can_go_when="a step of 0 is saved like any other",
)
def complete_step(optimizer: Any, state: dict[Any, Any]) -> None:
    """Add, before `state` is loaded, the step of 0 that Megatron leaves out."""
    for part, of_torch in parts_of_state(optimizer, state):
        if _is_torch_adam(part.optimizer) and "state" in of_torch:
            of_torch["state"].setdefault("common_step", torch.tensor(0.0))


@patch(
    "megatron-core",
    symptom="after a restart Adam counts n steps for one: its corrections of the moments are wrong; silent",
    trigger="the distributed optimizer loads a state with torch's Adam over n parameters",
    why="load_state_dict gives one and the same `step` tensor to all parameters",
    versions=_TESTED,
    can_go_when="DistributedOptimizer.load_state_dict makes a step for each parameter",
)
def own_step_after_loading() -> None:
    """Let every parameter have a ``step`` of its own after loading."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if not _first(own_step_after_loading.__name__):
        return
    original: Any = DistributedOptimizer.load_state_dict

    def load_state_dict(self: Any, state_dict: Any) -> None:
        original(self, state_dict)
        if _is_torch_adam(self.optimizer):
            for state in self.optimizer.state.values():
                state["step"] = state["step"].clone()

    DistributedOptimizer.load_state_dict = load_state_dict


@patch(
    "megatron-core",
    symptom="RuntimeError: a view of a leaf Variable … in-place; behind that, KeyError: 'step'",
    trigger="the distributed optimizer loads a reshardable checkpoint with torch's Adam",
    why="the formats leave out `step`, which the loading of each parameter looks up all the same",
    versions=_TESTED,
    can_go_when="_set_main_param_and_optimizer_states takes a state without step, outside autograd",
)
def keep_step_in_reshardable_loading() -> None:
    """Let a parameter keep the step it has where the checkpoint's format has none."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if not _first(keep_step_in_reshardable_loading.__name__):
        return
    original: Any = DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        if _is_torch_adam(self.optimizer):
            group, index = self.model_param_group_index_map[model_param]
            parameter = self.optimizer.param_groups[group]["params"][index]
            tensors = {**tensors, "step": self.optimizer.state[parameter]["step"]}
        with torch.no_grad():
            original(self, model_param, tensors)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states


@patch(
    "megatron-core",
    symptom="nodes run out of main memory at a checkpoint: every rank holds 12 bytes per parameter of its shard",
    trigger="checkpoints in the format `fully_reshardable` of a model with many parameters on a rank",
    why="Megatron gathers the state of all parameters of the model-parallel shard in main memory at once",
    versions=_TESTED,
    can_go_when="Megatron shares the gathered parameters out among the data-parallel ranks",
)
def share_out_fully_reshardable(save: Callable[..., Any], load: Callable[..., Any]) -> None:
    """Replace how the distributed optimizer makes, and takes, the state in that format. Safe to call again."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    DistributedOptimizer.sharded_param_state_fully_reshardable = save
    DistributedOptimizer.load_parameter_state_from_fully_reshardable = load


@private_api(
    "megatron-core",
    symptom="(no other way to the main weight and moments that a rank holds of a parameter)",
    trigger="a checkpoint is saved in the format `fully_reshardable`",
    why="the distributed optimizer cuts buckets, not parameters, and only itself knows the cuts",
    versions=_TESTED,
    can_go_when="a public method gives the local state of a parameter",
)
def local_state(optimizer: Any, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """This rank's part of a parameter's state, by Megatron's names: ``param``, ``exp_avg``, ``exp_avg_sq``."""
    tensors: dict[str, torch.Tensor] = optimizer._get_main_param_and_optimizer_states(parameter)
    return tensors


@private_api(
    "megatron-core",
    symptom="(no other way to fill the main weight and moments that a rank holds of a parameter)",
    trigger="a checkpoint is loaded from the format `fully_reshardable`",
    why="the distributed optimizer cuts buckets, not parameters, and only itself knows the cuts",
    versions=_TESTED,
    can_go_when="a public method fills the local state of a parameter",
)
def set_local_state(optimizer: Any, parameter: torch.nn.Parameter, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `local_state`."""
    optimizer._set_main_param_and_optimizer_states(parameter, state)


@dataclass(frozen=True)
class InBucket:
    """Where a parameter lies in a bucket of the distributed optimizer's buffers."""

    number: int
    """Among all parameters of the optimizer."""
    parameter: torch.nn.Parameter
    start: int
    """Its first element in the bucket."""
    size: int
    """Its elements."""
    bucket_size: int
    """Elements of the bucket, padding included."""


@private_api(
    "megatron-core",
    symptom="(no other way to know which elements of a bucket are a parameter's)",
    trigger="a checkpoint is saved or loaded in the format `fully_reshardable`",
    why="`buffers`, `param_index_map`, `buckets`, `offset` and `grad_data` are the optimizer's own bookkeeping",
    versions=_TESTED,
    can_go_when="Megatron shares the gathered parameters out among the data-parallel ranks",
)
def parameters_by_bucket(optimizer: Any) -> list[list[InBucket]]:
    """The parameters of each bucket in their order; alike on all ranks of the optimizer's group."""
    found: list[list[InBucket]] = []
    number = 0
    for buffer in optimizer.buffers:
        of_buffer: list[list[InBucket]] = [[] for _ in buffer.buckets]
        for parameter, (start, end, bucket_number) in buffer.param_index_map.items():
            bucket = buffer.buckets[bucket_number]
            place = InBucket(number, parameter, start - bucket.offset, end - start, bucket.grad_data.numel())
            of_buffer[bucket_number].append(place)
            number += 1
        for of_bucket in of_buffer:
            found.append(sorted(of_bucket, key=lambda place: place.start))
    return found


@private_api(
    "megatron-core",
    symptom="AttributeError, or settings of a resumed run kept for some of the parameters alone",
    trigger="a model whose optimizer is several, as with experts under expert parallelism",
    why="Megatron chains optimizers without a way to walk over what is one and what is many",
    versions=_TESTED,
    can_go_when="every MegatronOptimizer lists its parts",
)
def parts(optimizer: Any) -> list[Any]:
    """The optimizers that Megatron chains; a single one is the only part of itself."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def parts_of_state(optimizer: Any, state: dict[Any, Any]) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Each of the optimizers that Megatron chains, and the state of its torch optimizer in `state`."""
    all_parts = parts(optimizer)
    for number, part in enumerate(all_parts):
        if len(all_parts) == 1:
            of_part = state
        else:
            of_part = state[number]
        yield part, of_part.get("optimizer", of_part)  # Megatron's mixed precision wraps torch's


def _is_torch_adam(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)


def _first(name: str) -> bool:
    """Whether the replacement of that name has not been made yet."""
    if name in _patched:
        return False
    _patched.add(name)
    return True
