"""The batch of a step, the same at every run."""

from typing import Any

import torch

from tests.distributed.actor_cases import sequences


def recorded_batch(step: int, version: int) -> Any:
    """Four questions with two episodes each, other ones at every step; nothing to learn from at step 3."""
    from megatron_empg.algorithms.sample import Sample
    from megatron_empg.rollout.service.batch import Batch
    from megatron_empg.rollout.service.experience import experience_of
    from megatron_empg.run.episode_text import EpisodeText, TurnText

    numbers = torch.arange(0 if step == 3 else 8)
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(12, 60, (len(numbers),), generator=generator).tolist()
    drawn = sequences(lengths, seed=step)
    experience = experience_of(
        [Sample(sample.tokens, sample.turns) for sample in drawn],
        numbers,
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])[numbers],
        groups=numbers // 2,
        rollout_logprobs=torch.cat([torch.empty(0), *(sample.streams.old_logprobs for sample in drawn)]),
        gold=[torch.tensor([201 + number, 202]) for number in numbers.tolist()],
    )
    turns = [TurnText(f"turn {turn} of {step}", "seen") for turn in range(2)]
    return Batch(
        experience,
        policy_versions=torch.full((len(numbers), 2), version),
        texts=[EpisodeText(str(i), "?", "success", turns) for i in numbers.tolist()],
        metrics={"train/reward": 0.6 if drawn else 0.0},
        untrained=[] if drawn else [EpisodeText("dropped", "?", "failure", turns)],
    )
