"""One training batch on its way from the driver to the trainer ranks: tensors and JSON, no pickle."""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.actor.packing import Sequence


@dataclass
class Batch:
    """The episodes to learn from, those of a question adjacent; errors and dropped groups are not among them."""

    sequences: list[Sequence]
    """Tokens and step offsets; ``values["rollout_logprobs"]`` as the engine sampled them."""
    rewards: Float[Tensor, "episodes"]
    groups: Int[Tensor, "episodes"]
    """Which question each episode answers."""
    policy_versions: Int[Tensor, "episodes 2"]
    """Oldest and newest policy version among the episode's own tokens."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    """What a reader wants to see of each: task, question, outcome, texts and observations by turn."""
    metrics: dict[str, float] = field(default_factory=dict)
    """``train/…`` numbers of the whole rollout, dropped episodes included."""

    def to_bytes(self) -> bytes:
        """A safetensors file: the numbers as tensors, the texts as its JSON metadata."""
        from safetensors.torch import save

        def flat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
            return torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype)

        sequences = self.sequences
        tensors = {
            "tokens": flat([s.tokens for s in sequences], torch.int32),
            "lengths": torch.tensor([len(s.tokens) for s in sequences], dtype=torch.int64),
            "steps": flat([s.steps for s in sequences], torch.int32).reshape(-1, 2),
            "step_counts": torch.tensor([len(s.steps) for s in sequences], dtype=torch.int64),
            "rollout_logprobs": flat([s.values["rollout_logprobs"] for s in sequences], torch.float32),
            "rewards": self.rewards.float(),
            "groups": self.groups,
            "policy_versions": self.policy_versions,
        }
        metadata = {"episodes": json.dumps(self.episodes), "metrics": json.dumps(self.metrics)}
        return save({name: t.contiguous() for name, t in tensors.items()}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Batch":
        """The inverse of `to_bytes`. Raises ValueError for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(data)
        except SafetensorError as error:
            raise ValueError(f"these {len(data)} bytes are not a batch: {error}") from error
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        steps = tensors["steps"].long().split(tensors["step_counts"].tolist())
        own = [int((s[:, 1] - s[:, 0]).sum()) for s in steps]
        tokens = tensors["tokens"].long().split(tensors["lengths"].tolist())
        logprobs = tensors["rollout_logprobs"].split(own)
        return cls(
            [Sequence(t, s, {"rollout_logprobs": p}) for t, s, p in zip(tokens, steps, logprobs, strict=True)],
            tensors["rewards"],
            tensors["groups"],
            tensors["policy_versions"],
            json.loads(header["episodes"]),
            json.loads(header["metrics"]),
        )
