"""Actors and samples for the tests of training, and several cases in one start of the ranks.

Starting ranks costs ten seconds, a case a fraction of one: so a world size starts once, its cases run one after
the other in the same processes, and each is a test of its own.
"""

import dataclasses
import itertools
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import collective_order

FIRST_OWN_ID = 150
"""In these sequences the policy's own tokens are those from this id on, and no others."""


def run_cases(cases: list[Callable[[Path], Any]], folder: str) -> dict[str, Any]:
    """On every rank: what each case returned, or its traceback. After one that failed on one of several ranks none
    runs: the others may still wait for it."""
    from megatron_empg.actor import platform

    platform.prepare()
    dist.init_process_group(platform.collective_backend(), timeout=timedelta(seconds=60))
    answers: dict[str, Any] = {}
    for case in cases:
        failed = torch.zeros(1, device=platform.device())
        try:
            answers[case.__name__] = case(Path(folder))
        except Exception:
            answers[case.__name__] = AssertionError(f"rank {dist.get_rank()}:\n{traceback.format_exc()}")
            collective_order.note(traceback.format_exc())  # the other ranks may wait for this one
            failed += 1
        dist.all_reduce(failed)
        if failed and dist.get_world_size() > 1:
            break
    return answers


def answer(results: list[dict[str, Any]], case: Callable[..., Any], rank: int = 0) -> Any:
    """What a case returned on a rank; raises what it raised on any."""
    missing = AssertionError("did not run: a case before it failed")
    found = [of_rank.get(case.__name__, missing) for of_rank in results]
    failures = [str(value) for value in found if isinstance(value, AssertionError)]
    if failures:
        raise AssertionError("\n".join(failures))
    return found[rank]


def actor_config(layout: dict[str, Any], **settings: Any) -> Any:
    """What an actor is told. Layouts have the short names that checkpoints record them under; the optimizer's keys
    stand among the others."""
    from megatron_empg.actor.config import ActorConfig, OptimizerConfig

    sizes = {
        name if name in ActorConfig.model_fields else f"{name}_parallel": size for name, size in layout.items()
    }
    constants = {name: settings.pop(name) for name in OptimizerConfig.model_fields if name in settings}
    # Without its checks: a learning rate of 0, which no recipe may have, leaves the weights where they are.
    optimizer = OptimizerConfig.model_construct(**constants)
    return ActorConfig(**sizes, **settings, optimizer=optimizer)


def fresh_actor(
    folder: Path,
    layout: dict[str, Any],
    *,
    model: str = "model",
    budget: int = 128,
    lr: float = 3e-4,
    **settings: Any,
) -> Any:
    """An actor with the weights in ``folder/MODEL``; an earlier one's process groups are torn down."""
    from megatron.core import parallel_state

    from megatron_empg.actor.actor import Actor
    from megatron_empg.weights.mapping.model_config import ModelConfig

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    dtype = settings.pop("dtype", "float32")
    run = {name: settings.pop(name) for name in ("seed", "total_steps") if name in settings}
    told = actor_config(layout, max_tokens_per_microbatch=budget, lr=lr, **settings)
    actor = Actor(ModelConfig.from_folder(folder / model), told, dtype=dtype, **run)
    actor.load_weights(folder / model)
    return actor


def policy_loss() -> Any:
    from megatron_empg.algorithms.algorithm import PolicyLoss
    from megatron_empg.algorithms.policy_loss import TokenClip

    return PolicyLoss(TokenClip(0.2, 0.28), [])


def sequences(lengths: list[int], seed: int = 5) -> list[Any]:
    """Each a prompt, an own turn, an observation, an own turn; streams as `policy_loss` wants them."""
    from megatron_empg.algorithms.sample import Sample, TokenStreams

    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        turns = torch.tensor([[length // 4, length // 2], [3 * length // 4, length - length % 2]])
        tokens = torch.randint(0, FIRST_OWN_ID, (length,), generator=generator)
        for start, end in turns.tolist():
            tokens[start:end] = torch.randint(FIRST_OWN_ID, 301, (end - start,), generator=generator)
        own = int((turns[:, 1] - turns[:, 0]).sum())
        streams = TokenStreams(
            old_logprobs=-7.0 + torch.randn(own, generator=generator),
            advantages=0.5 + torch.randn(own, generator=generator),
            loss_weights=torch.ones(own),
            mean_weights=torch.ones(own),
        )
        made.append(Sample(tokens, turns, streams))
    return made


@torch.no_grad()
def with_old_logprobs(model: Any, chosen: list[Any]) -> list[Any]:
    """The same with old log-probs near those of a Hugging Face model: some ratios are clipped, some not."""
    generator = torch.Generator().manual_seed(17)
    made = []
    for sample in chosen:
        where = sample.predictors()
        logprobs = model(sample.tokens[None]).logits[0].log_softmax(-1)[where, sample.tokens[where + 1]]
        near = logprobs + 0.15 * torch.randn(len(logprobs), generator=generator)
        made.append(with_streams(sample, old_logprobs=near))
    return made


def with_streams(sample: Any, **streams: Tensor) -> Any:
    """The same sample with other streams, or more of them."""
    return dataclasses.replace(sample, streams=dataclasses.replace(sample.streams, **streams))


def turn_entropies(samples: list[Any], scores: list[Any]) -> Tensor:
    """The mean entropy of every turn, all samples' laid end to end."""
    means = []
    for sample, score in zip(samples, scores, strict=True):
        means += [turn.mean() for turn in score.entropies.split(sample.turn_lengths)]
    return torch.stack(means)


def weights_of(actor: Any) -> dict[str, Tensor]:
    """The whole policy under Hugging Face names; collective."""
    actor.settle()
    return {name: tensor.clone() for name, tensor in actor.weights()}


def optimizer_tensors(actor: Any) -> list[Tensor]:
    """This rank's Adam state and main weights, in the optimizer's order."""
    optimizers = getattr(actor.optimizer, "chained_optimizers", [actor.optimizer])
    tensors: list[Tensor] = []
    for optimizer in optimizers:
        parameters = itertools.chain.from_iterable(g["params"] for g in optimizer.optimizer.param_groups)
        for parameter in parameters:
            state = optimizer.optimizer.state[parameter]
            tensors += [parameter.detach().clone()]
            tensors += [torch.as_tensor(state[name]).clone() for name in sorted(state)]
    return tensors


def assert_same(actual: Any, expected: Any) -> None:
    """Bit for bit: tensors, lists and dictionaries of them."""
    names = expected.keys() if isinstance(expected, dict) else range(len(expected))
    assert len(actual) == len(expected)
    for name in names:
        assert torch.equal(actual[name], expected[name]), name


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - expected[name]).abs().max()) for name in expected)
