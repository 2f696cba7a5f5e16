"""Mends three faults of megatron-core's optimizers that show when Adam is torch's own.

Without Transformer Engine and apex (on CPU, and on a GPU that lacks both) Adam is ``torch.optim.AdamW``, whose
``step`` is a tensor for each parameter. Then (a) an optimizer that has not stepped yet cannot be saved and
loaded, (b) the distributed one after loading lets all parameters share one ``step`` tensor, so that Adam counts
n steps for one and is silently wrong, and (c) misses ``step`` in its reshardable checkpoint formats.
"""

from collections.abc import Iterator
from typing import Any

import torch


def apply() -> None:
    """Patch the class once; a no-op where the optimizer is fused and has no such state."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if getattr(DistributedOptimizer, "_empg_repaired", False):
        return
    DistributedOptimizer._empg_repaired = True
    _own_step_after_loading(DistributedOptimizer)
    _step_survives_reshardable_loading(DistributedOptimizer)


def _is_torch_adam(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)


def complete_state(optimizer: Any) -> None:
    """Before saving: give each parameter the state that Adam would make in its first step."""
    for each in _parts(optimizer):
        each.init_state_fn(each.optimizer, each.config)
        if _is_torch_adam(each.optimizer):
            for state in each.optimizer.state.values():
                state.setdefault("step", torch.tensor(0.0))


def complete_step(optimizer: Any, state: dict[Any, Any]) -> None:
    """Before loading `state`: Megatron leaves a step of 0 out, and torch wants one."""
    for part, of_torch in parts_of_state(optimizer, state):
        if _is_torch_adam(part.optimizer) and "state" in of_torch:
            of_torch["state"].setdefault("common_step", torch.tensor(0.0))


def parts_of_state(optimizer: Any, state: dict[Any, Any]) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Each of the optimizers that Megatron chains, and the state of its torch optimizer in `state`."""
    parts = _parts(optimizer)
    for number, part in enumerate(parts):
        of_part = state if len(parts) == 1 else state[number]
        yield part, of_part.get("optimizer", of_part)  # Megatron's mixed precision wraps torch's


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _own_step_after_loading(cls: Any) -> None:
    original = cls.load_state_dict

    def load_state_dict(self: Any, state_dict: Any) -> None:
        original(self, state_dict)
        if _is_torch_adam(self.optimizer):
            for state in self.optimizer.state.values():
                state["step"] = state["step"].clone()

    cls.load_state_dict = load_state_dict


def _step_survives_reshardable_loading(cls: Any) -> None:
    original = cls._set_main_param_and_optimizer_states

    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        if _is_torch_adam(self.optimizer):
            group, index = self.model_param_group_index_map[model_param]
            parameter = self.optimizer.param_groups[group]["params"][index]
            tensors = {**tensors, "step": self.optimizer.state[parameter]["step"]}
        with torch.no_grad():
            original(self, model_param, tensors)

    cls._set_main_param_and_optimizer_states = set_states
