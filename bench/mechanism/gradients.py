"""Gradients with respect to a policy's parameters, one for each turn: of the turn's summed log-prob.

The policy is read by transformers and differentiated by torch, apart from the actor that trains it, so that what
is measured here is not measured by the thing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_empg.algorithms.base import Scores
from megatron_empg.algorithms.sample import Sample


class TurnGradients:
    """A policy in float32 on this thread's CPU."""

    def __init__(self, policy: Path) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, local_files_only=True)
        self._model = loaded.eval()
        self._parameters = [parameter for parameter in loaded.parameters() if parameter.requires_grad]

    @property
    def dimensions(self) -> int:
        """Numbers in a gradient."""
        return sum(parameter.numel() for parameter in self._parameters)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> Scores:
        """Log-probs and exact entropies of the samples' own tokens, end to end."""
        logprobs, entropies = [], []
        for sample in samples:
            log_softmax = self._log_softmax(sample)
            logprobs.append(_of_own_tokens(log_softmax, sample))
            entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
        return Scores(torch.cat(logprobs), torch.cat(entropies))

    def of_turns(self, samples: Sequence[Sample]) -> Iterator[Float[Tensor, "dimensions"]]:
        """The gradient of each turn's log-prob, summed over its own tokens, in order."""
        for sample in samples:
            for start, end in sample.turns.tolist():
                # What follows a turn says nothing of it, so the pass ends where the turn does.
                turn = Sample(sample.tokens[:end], torch.tensor([[start, end]]))
                logprob = _of_own_tokens(self._log_softmax(turn), turn).sum()
                parts = torch.autograd.grad(logprob, self._parameters)
                yield torch.cat([part.flatten() for part in parts])

    def _log_softmax(self, sample: Sample) -> Float[Tensor, "own_tokens vocabulary"]:
        hidden = self._model.base_model(sample.tokens[None].long(), use_cache=False).last_hidden_state[0]
        logits = self._model.get_output_embeddings()(hidden[sample.predictors()])
        return logits.log_softmax(-1)


def _of_own_tokens(log_softmax: Tensor, sample: Sample) -> Float[Tensor, "own_tokens"]:
    own = sample.tokens[sample.predictors() + 1].long()
    return log_softmax.gather(1, own[:, None])[:, 0]
