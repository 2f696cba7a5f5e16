"""Megatron-core's Adam with gradient clipping, and its learning-rate schedule."""

from typing import Any

import torch

from megatron_empg.actor.config import ActorConfig
from megatron_empg.upstream.megatron_optimizer import parts_of_state

_SETTINGS = "betas", "eps", "max_lr", "min_lr", "start_wd", "end_wd"
"""What all parameter groups have alike from `OptimizerConfig`, by Megatron's and torch's names."""


def build_optimizer(model: list[Any], mcore: Any, actor: ActorConfig, *, total_steps: int) -> tuple[Any, Any]:
    """(optimizer, schedule) over the model chunks' parameters; float32 main weights under bfloat16.

    The schedule ends with update ``total_steps``.
    """
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    settings = actor.optimizer
    beta1, beta2 = settings.betas
    adam = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.lr / 10,
        adam_beta1=beta1,
        adam_beta2=beta2,
        weight_decay=settings.weight_decay,
        clip_grad=settings.clip_grad,
        bf16=mcore.bf16,
        params_dtype=mcore.params_dtype,
        use_distributed_optimizer=actor.distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(adam, model)
    mcore.grad_scale_func = optimizer.scale_loss
    first_lr = settings.lr / max(settings.warmup_steps, 1)
    last_lr = settings.lr
    if settings.schedule != "constant":
        last_lr = settings.lr / 10
    # Megatron counts updates from 0: the first is at `init_lr`, and every number of updates is one less.
    climb = max(settings.warmup_steps - 1, 0)
    end = max(total_steps - 1, climb + 1)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=first_lr,
        max_lr=settings.lr,
        min_lr=last_lr,
        lr_warmup_steps=climb,
        lr_decay_steps=end,
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=1,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
    return optimizer, scheduler


def keep_settings(optimizer: Any, state: dict[Any, Any]) -> None:
    """Write this optimizer's own Adam constants and schedule ends into `state` before it is loaded.

    Megatron prefers what was saved, whatever the run's settings are now. The learning rate and the weight decay of
    the next update follow from these and the schedule.
    """
    for part, loaded in parts_of_state(optimizer, state):
        current = part.optimizer.param_groups[0]
        settings = {name: current[name] for name in _SETTINGS if name in current}
        for group in loaded["param_groups"]:
            group.update(settings)


@torch.no_grad()
def gradient_norm(optimizer: Any) -> float:
    """Norm of the whole gradient over all ranks, before clipping; also what the non-finite guard reads."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())
