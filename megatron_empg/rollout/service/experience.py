"""An experience put together from samples, and as tensors of plain numbers that travel by name."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.sample import Sample

_FORMAT = {
    "rewards": torch.float32,
    "groups": torch.int64,
    "truncated": torch.bool,
    "turn_rewards": torch.float32,
    "anchors": torch.int64,
    "cut": torch.bool,
    "rollout_logprobs": torch.float32,
    "tokens": torch.int32,
    "sample_lengths": torch.int64,
    "turns": torch.int32,
    "turn_counts": torch.int64,
    "episode_of_sample": torch.int64,
    "gold": torch.int32,
    "gold_lengths": torch.int64,
}
"""Tensors by which an experience travels. ``turns`` and ``turn_counts`` are of the samples, laid end to end."""


def experience_of(
    samples: list[Sample],
    episode_of_sample: Int[Tensor, "samples"],
    *,
    rewards: Float[Tensor, "episodes"],
    groups: Int[Tensor, "episodes"],
    rollout_logprobs: Float[Tensor, "own_tokens"],
    truncated: Bool[Tensor, "episodes"] | None = None,
    turn_rewards: Float[Tensor, "turns"] | None = None,
    anchors: Int[Tensor, "turns"] | None = None,
    cut: Bool[Tensor, "turns"] | None = None,
    gold: list[Int[Tensor, "gold_tokens"]] | None = None,
) -> Experience:
    """An experience whose turns are those of its samples; an episode's samples are adjacent, and episodes ascend.

    What is not given is nothing: no episode truncated, no turn cut, no reward of a turn, no gold turn, and each
    turn in a state of its own. Raises ValueError when the parts do not fit each other.
    """
    turns_of_sample = torch.tensor([len(sample.turns) for sample in samples], dtype=torch.long)
    lengths = torch.tensor([length for sample in samples for length in sample.turn_lengths], dtype=torch.long)
    episodes, turns = len(rewards), len(lengths)
    experience = Experience(
        rewards=rewards,
        groups=groups,
        truncated=torch.zeros(episodes, dtype=torch.bool) if truncated is None else truncated,
        episode_of_turn=episode_of_sample.repeat_interleave(turns_of_sample),
        turn_lengths=lengths,
        turn_rewards=torch.zeros(turns) if turn_rewards is None else turn_rewards,
        anchors=torch.arange(turns) if anchors is None else anchors,
        cut=torch.zeros(turns, dtype=torch.bool) if cut is None else cut,
        rollout_logprobs=rollout_logprobs,
        samples=samples,
        episode_of_sample=episode_of_sample,
        gold=[torch.empty(0, dtype=torch.long)] * episodes if gold is None else gold,
    )
    _check(experience)
    return experience


def _check(experience: Experience) -> None:
    episodes, turns = len(experience.rewards), len(experience.turn_lengths)
    tokens, samples = int(experience.turn_lengths.sum()), len(experience.samples)
    sizes = {
        "groups": (len(experience.groups), episodes),
        "truncated": (len(experience.truncated), episodes),
        "gold": (len(experience.gold), episodes),
        "turn_rewards": (len(experience.turn_rewards), turns),
        "anchors": (len(experience.anchors), turns),
        "cut": (len(experience.cut), turns),
        "rollout_logprobs": (len(experience.rollout_logprobs), tokens),
        "episode_of_sample": (len(experience.episode_of_sample), samples),
    }
    for name, (given, wanted) in sizes.items():
        if given != wanted:
            raise ValueError(
                f"{name} has {given} values, the experience has {episodes} episodes, {samples} samples, {turns} "
                f"turns and {tokens} own tokens, so it must have {wanted}"
            )
    owner = experience.episode_of_sample
    if len(owner) and not (owner[0] >= 0 and owner[-1] < episodes and (owner.diff() >= 0).all()):
        raise ValueError(
            f"episode_of_sample is {owner.tolist()}; it must ascend within 0 to {episodes - 1}, the samples of an "
            "episode side by side"
        )


def experience_to_tensors(experience: Experience) -> dict[str, Tensor]:
    """The experience by names and in types of `_FORMAT`."""
    samples = experience.samples
    gold = experience.gold or [torch.empty(0)] * len(experience.rewards)
    tensors = {
        "rewards": experience.rewards,
        "groups": experience.groups,
        "truncated": experience.truncated,
        "turn_rewards": experience.turn_rewards,
        "anchors": experience.anchors,
        "cut": experience.cut,
        "rollout_logprobs": experience.rollout_logprobs,
        "tokens": _joined([sample.tokens for sample in samples]),
        "sample_lengths": torch.tensor([len(sample.tokens) for sample in samples]),
        "turns": _joined([sample.turns for sample in samples]).reshape(-1, 2),
        "turn_counts": torch.tensor([len(sample.turns) for sample in samples]),
        "episode_of_sample": experience.episode_of_sample,
        "gold": _joined(gold),
        "gold_lengths": torch.tensor([len(turn) for turn in gold]),
    }
    return {name: tensor.to(_FORMAT[name]) for name, tensor in tensors.items()}


def experience_from_tensors(tensors: dict[str, Tensor]) -> Experience:
    """The inverse of `experience_to_tensors`. Raises ValueError, KeyError or RuntimeError for anything else."""
    for name, dtype in _FORMAT.items():
        dimensions = 2 if name == "turns" else 1
        given = tensors[name]
        if given.dtype != dtype or given.ndim != dimensions:
            raise ValueError(
                f"{name} is {given.dtype} of shape {tuple(given.shape)}; it must be {dtype} and have {dimensions} "
                "dimensions"
            )
    tokens = tensors["tokens"].split(tensors["sample_lengths"].tolist())
    turns = tensors["turns"].long().split(tensors["turn_counts"].tolist())
    return experience_of(
        [Sample(own, spans) for own, spans in zip(tokens, turns, strict=True)],
        tensors["episode_of_sample"],
        rewards=tensors["rewards"],
        groups=tensors["groups"],
        rollout_logprobs=tensors["rollout_logprobs"],
        truncated=tensors["truncated"],
        turn_rewards=tensors["turn_rewards"],
        anchors=tensors["anchors"],
        cut=tensors["cut"],
        gold=list(tensors["gold"].long().split(tensors["gold_lengths"].tolist())),
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0)
