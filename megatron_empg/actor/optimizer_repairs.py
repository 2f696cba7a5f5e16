"""Mends three faults of megatron-core's DistributedOptimizer that show when Adam is torch's own.

Without Transformer Engine and apex (on CPU, and on a GPU that lacks both) Adam is ``torch.optim.AdamW``, whose
``step`` is a tensor for each parameter. The distributed optimizer then (a) asserts when asked for the state of
an optimizer that has not stepped yet, (b) after loading lets all parameters share one ``step`` tensor, so that
Adam counts n steps for one and is silently wrong, (c) misses ``step`` in its reshardable checkpoint formats.
"""

from typing import Any

import torch


def apply() -> None:
    """Patch the class once; a no-op where the optimizer is fused and has no such state."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    if getattr(DistributedOptimizer, "_empg_repaired", False):
        return
    DistributedOptimizer._empg_repaired = True
    _state_of_a_fresh_optimizer(DistributedOptimizer)
    _own_step_after_loading(DistributedOptimizer)
    _step_survives_reshardable_loading(DistributedOptimizer)


def _is_torch_adam(optimizer: Any) -> bool:
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)


def _state_of_a_fresh_optimizer(cls: Any) -> None:
    original = cls.state_dict

    def state_dict(self: Any) -> Any:
        if _is_torch_adam(self.optimizer):
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    state = self.optimizer.state[parameter]
                    if "step" not in state:
                        state["step"] = torch.tensor(0.0)
                        state["exp_avg"] = torch.zeros_like(parameter)
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
        return original(self)

    cls.state_dict = state_dict


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
