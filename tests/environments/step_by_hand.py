"""A training step once more: Hugging Face's model in float64, and loops over plain numbers from the equations.

What is shared with the step that it is compared with: the batch, which of its episodes each optimizer step takes,
and the weights that the step began with. Advantages, modulation and loss are those of
`tests.unit.algorithms.oracles`; Adam and the clipping of gradients are written out here.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_empg.actor.config import OptimizerConfig
from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.sample import Sample
from megatron_empg.recipe import Recipe
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.trainer.policy_update import split_episodes
from megatron_empg.weights.checkpoints.open_weights import open_weights
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.unit.algorithms import oracles

SAMPLES_AT_ONCE = 8
ADAM_EPS = 1e-8
"""Megatron's, and torch's."""
CLIP_EPS = 1e-6
"""What Megatron adds to the norm that it divides by (clip_grads.py, clip_grad_by_total_norm_fp32)."""


@dataclass(frozen=True)
class Said:
    """What the model says of a sample's own tokens."""

    logprobs: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class HandMade:
    """A step's numbers. Turns and own tokens as the batch has them; means are over own tokens."""

    logprobs: Tensor
    turn_entropies: list[float]
    trajectory_advantages: list[float]
    """Of each turn, before modulation."""
    turn_advantages: list[float]
    loss: float
    ratio: float
    clipped: float
    """The share of own tokens whose loss a clip decides."""
    update_entropy: float
    gradient_norms: list[float]
    """Of each optimizer step, before clipping."""


@dataclass
class Sums:
    """Over the own tokens of a step's parts."""

    tokens: int = 0
    loss: float = 0.0
    ratio: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0


@dataclass
class Adam:
    """Adam (arXiv 1412.6980) without weight decay, at a constant rate."""

    settings: OptimizerConfig
    updates: int = 0
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, model: Any) -> float:
        """One step by the gradients that the model has, clipped. The norm before clipping."""
        named = dict(model.named_parameters())
        norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in named.values()))
        scale = min(1.0, self.settings.clip_grad / (norm + CLIP_EPS))
        self.updates += 1
        fast, slow = self.settings.betas
        for name, parameter in named.items():
            gradient = scale * parameter.grad
            before = self.first.get(name, torch.zeros_like(gradient))
            self.first[name] = fast * before + (1 - fast) * gradient
            before = self.second.get(name, torch.zeros_like(gradient))
            self.second[name] = slow * before + (1 - slow) * gradient.square()
            mean = self.first[name] / (1 - fast**self.updates)
            spread = (self.second[name] / (1 - slow**self.updates)).sqrt()
            parameter.sub_(self.settings.lr * mean / (spread + ADAM_EPS))
        return norm


def float64_model(folder: Path) -> Any:
    """Hugging Face's model of a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, local_files_only=True).eval()


def weights_of(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder or of a run's checkpoint, in float64."""
    found: dict[str, Tensor] = {}
    with open_weights(folder, config) as reader:
        for parameter in reader.table:
            for name, tensor in zip(parameter.hf, reader.read(parameter), strict=True):
                found[name] = tensor.double()
    return found


@torch.no_grad()
def give(model: Any, weights: dict[str, Tensor]) -> None:
    """Put the tensors, all of the model's, into it."""
    named = dict(model.named_parameters())
    assert named.keys() == weights.keys()
    for name, parameter in named.items():
        parameter.copy_(weights[name])


def say(model: Any, samples: list[Sample], temperature: float) -> list[Said]:
    """Log-prob and entropy at each own token of each sample, with gradient."""
    said: dict[int, Said] = {}
    by_length = sorted(range(len(samples)), key=lambda number: len(samples[number].tokens))
    for first in range(0, len(samples), SAMPLES_AT_ONCE):
        chosen = by_length[first : first + SAMPLES_AT_ONCE]
        said |= zip(chosen, _say_together(model, [samples[number] for number in chosen], temperature), strict=True)
    return [said[number] for number in range(len(samples))]


def _say_together(model: Any, samples: list[Sample], temperature: float) -> list[Said]:
    """Shorter samples are filled up behind their end, where no token of theirs looks."""
    tokens = torch.nn.utils.rnn.pad_sequence([sample.tokens.long() for sample in samples], batch_first=True)
    hidden = model.model(tokens).last_hidden_state
    said = []
    for number, sample in enumerate(samples):
        where = sample.predictors()
        rows = (model.lm_head(hidden[number, where]) / temperature).log_softmax(-1)
        drawn = rows.gather(-1, tokens[number, where + 1][:, None])[:, 0]
        said.append(Said(drawn, -(rows.exp() * rows).sum(-1)))
    return said


def step_by_hand(model: Any, adam: Adam, batch: Batch, recipe: Recipe, step: int) -> HandMade:
    """The step that is numbered so, from 0. The model ends with the weights behind it."""
    experience, temperature = batch.experience, recipe.rollout.temperature
    with torch.no_grad():
        said = say(model, experience.samples, temperature)
    logprobs = torch.cat([one.logprobs for one in said])
    lists = oracles.episodes_of(experience, Scores(logprobs, torch.cat([one.entropies for one in said])))
    plain = oracles.on_turns(lists, oracles.grpo(lists))
    final = _modulated(recipe, lists, plain)

    of_tokens = _advantages_of_samples(experience, final)
    sums, norms = Sums(), []
    seed = recipe.run.seed * 1_000_003 + step
    for episodes in split_episodes(len(lists), recipe.algorithm.updates_per_batch, seed):
        own = sum(lists[episode].tokens for episode in episodes)
        owners = experience.episode_of_sample.tolist()
        chosen = [number for number, episode in enumerate(owners) if episode in episodes]
        model.zero_grad()
        now = say(model, [experience.samples[number] for number in chosen], temperature)
        slopes = []
        for new, number in zip(now, chosen, strict=True):
            old = said[number].logprobs.tolist()
            slopes.append(_slopes(recipe, new, old, of_tokens[number], own, sums))
        torch.autograd.backward([new.logprobs for new in now], slopes)
        norms.append(adam.step(model))
    return HandMade(
        logprobs,
        [turn.entropy for episode in lists for turn in episode.turns],
        oracles.flat(plain),
        final,
        loss=sums.loss / sums.tokens,
        ratio=sums.ratio / sums.tokens,
        clipped=sums.clipped / sums.tokens,
        update_entropy=sums.entropy / sums.tokens,
        gradient_norms=norms,
    )


def _modulated(recipe: Recipe, lists: oracles.Batch, plain: oracles.ByTurn) -> list[float]:
    """The final advantage of each turn."""
    chosen = recipe.algorithm.modulation
    if not isinstance(chosen, Empg):
        assert chosen.name == "none"
        return oracles.flat(plain)
    constants = {"k": chosen.k, "k_f": chosen.k_f, "zeta": chosen.zeta, "center": chosen.center}
    return oracles.empg(lists, plain, **constants).advantages


def _advantages_of_samples(experience: Experience, of_turns: list[float]) -> list[list[float]]:
    """The advantage at each own token of each sample."""
    given, found = iter(of_turns), []
    for sample in experience.samples:
        own: list[float] = []
        for length in sample.turn_lengths:
            own += [next(given)] * length
        found.append(own)
    return found


def _slopes(recipe: Recipe, now: Said, old: list[float], advantages: list[float], own: int, sums: Sums) -> Tensor:
    """The slope of the loss at each of a sample's own log-probs, `own` tokens having the same share in it; the
    tokens' numbers are added to the sums."""
    low, high = recipe.algorithm.clip_low, recipe.algorithm.clip_high
    slopes = []
    for new, was, advantage in zip(now.logprobs.tolist(), old, advantages, strict=True):
        ratio = math.exp(new - was)
        loss = oracles.clipped(ratio, advantage, low=low, high=high)
        slopes.append(loss.by_logprob / own)
        sums.loss += loss.value
        sums.ratio += ratio
        sums.clipped += loss.by_logprob == 0.0 and advantage != 0.0
    sums.tokens += len(slopes)
    sums.entropy += float(now.entropies.detach().sum())
    return torch.tensor(slopes, dtype=torch.float64)
