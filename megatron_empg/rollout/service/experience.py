"""An experience put together from samples, and as tensors of plain numbers that travel by name."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.sample import Sample

_AS_THEY_ARE = {
    "rewards": torch.float32,
    "groups": torch.int64,
    "truncated": torch.bool,
    "turn_rewards": torch.float32,
    "anchors": torch.int64,
    "cut": torch.bool,
    "rollout_logprobs": torch.float32,
    "episode_of_sample": torch.int64,
}
"""The fields of an experience that are one tensor each, and travel as they are."""
_LISTS = {
    "tokens": torch.int32,
    "sample_lengths": torch.int64,
    "turns": torch.int32,
    "turn_counts": torch.int64,
    "gold": torch.int32,
    "gold_lengths": torch.int64,
}
"""What is a list of tensors, laid end to end, with the length of each. ``turns`` and ``turn_counts`` are of the
samples."""
_FORMAT = _AS_THEY_ARE | _LISTS
"""Tensors by which an experience travels."""


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
    if truncated is None:
        truncated = torch.zeros(episodes, dtype=torch.bool)
    if turn_rewards is None:
        turn_rewards = torch.zeros(turns)
    if anchors is None:
        anchors = torch.arange(turns)
    if cut is None:
        cut = torch.zeros(turns, dtype=torch.bool)
    if gold is None:
        gold = [torch.empty(0, dtype=torch.long)] * episodes
    experience = Experience(
        rewards=rewards,
        groups=groups,
        truncated=truncated,
        episode_of_turn=episode_of_sample.repeat_interleave(turns_of_sample),
        turn_lengths=lengths,
        turn_rewards=turn_rewards,
        anchors=anchors,
        cut=cut,
        rollout_logprobs=rollout_logprobs,
        samples=samples,
        episode_of_sample=episode_of_sample,
        gold=gold,
    )
    _check(experience)
    return experience


def _check(experience: Experience) -> None:
    episodes, turns = len(experience.rewards), len(experience.turn_lengths)
    tokens, samples = int(experience.turn_lengths.sum()), len(experience.samples)
    sizes = {
        "groups": episodes,
        "truncated": episodes,
        "gold": episodes,
        "turn_rewards": turns,
        "anchors": turns,
        "cut": turns,
        "rollout_logprobs": tokens,
        "episode_of_sample": samples,
    }
    for name, wanted in sizes.items():
        given = len(getattr(experience, name))
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
    tokens = [sample.tokens for sample in experience.samples]
    turns = [sample.turns for sample in experience.samples]
    gold = experience.gold or [torch.empty(0)] * len(experience.rewards)
    tensors = {name: getattr(experience, name) for name in _AS_THEY_ARE}
    tensors |= {"tokens": _joined(tokens), "sample_lengths": _lengths(tokens)}
    tensors |= {"turns": _joined(turns).reshape(-1, 2), "turn_counts": _lengths(turns)}
    tensors |= {"gold": _joined(gold), "gold_lengths": _lengths(gold)}
    return {name: tensors[name].to(dtype) for name, dtype in _FORMAT.items()}


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
    gold = tensors["gold"].long().split(tensors["gold_lengths"].tolist())
    samples = [Sample(own, spans) for own, spans in zip(tokens, turns, strict=True)]
    fields = {name: tensors[name] for name in _AS_THEY_ARE}
    return experience_of(samples, gold=list(gold), **fields)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0)


def _lengths(parts: list[Tensor]) -> Int[Tensor, "parts"]:
    return torch.tensor([len(part) for part in parts])
