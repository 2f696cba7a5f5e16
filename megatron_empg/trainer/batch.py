"""One training batch on its way from the driver to the trainer ranks: tensors and JSON, no pickle."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from megatron_empg.actor.packing import Sequence

_LENGTH_BYTES = 8
"""The batch begins with the length of its numbers in bytes; what follows them is text."""


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
    """What a reader wants to see of each: task, question, outcome, texts and observations by turn. On its way a
    batch keeps that of the episodes somebody will read, and on the ranks but the first none."""
    metrics: dict[str, float] = field(default_factory=dict)
    """``train/…`` numbers of the whole rollout, dropped episodes included."""
    engines: Int[Tensor, "episodes"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """Which of ``engine_urls`` sampled each episode; -1 where nobody said."""
    engine_urls: list[str] = field(default_factory=list)
    example: str = ""
    """One episode that was played, to learn from or not, as a message shows it. Other ranks than the first have
    none."""

    def __post_init__(self) -> None:
        if len(self.engines) != len(self.sequences):
            self.engines = torch.full((len(self.sequences),), -1, dtype=torch.long)

    def engine_of(self, episode: int) -> str:
        """The engine that sampled an episode, as a message names it."""
        index = int(self.engines[episode])
        return self.engine_urls[index] if 0 <= index < len(self.engine_urls) else "an engine that was not noted"

    def to_bytes(self, texts: int | None = None) -> bytes:
        """The numbers as a safetensors file, and behind it the texts as JSON.

        ``texts``: of how many episodes of different groups the text goes along, the `first_episodes`; of all when
        None.
        """
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
            "engines": self.engines,
        }
        header = {"metrics": json.dumps(self.metrics), "engine_urls": json.dumps(self.engine_urls)}
        numbers = save({name: t.contiguous() for name, t in tensors.items()}, header)
        episodes = self.episodes
        if texts is not None:
            kept = set(first_episodes(self.groups, texts))
            episodes = [episode if i in kept else {} for i, episode in enumerate(episodes)]
        # Text has no place in the header, whose size safetensors limits.
        text = json.dumps({"episodes": episodes, "example": self.example}, ensure_ascii=False)
        return len(numbers).to_bytes(_LENGTH_BYTES, "little") + numbers + text.encode("utf-8", "surrogatepass")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Batch":
        """The inverse of `to_bytes`, or of `without_texts`. Raises ValueError for anything else."""
        from safetensors import SafetensorError

        try:
            return cls._read(data)
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"these {len(data)} bytes are not a batch: {what}") from error

    @classmethod
    def _read(cls, data: bytes) -> "Batch":
        from safetensors.torch import load

        size = int.from_bytes(data[:_LENGTH_BYTES], "little")
        numbers, text = data[_LENGTH_BYTES : _LENGTH_BYTES + size], data[_LENGTH_BYTES + size :]
        tensors = load(numbers)
        texts = json.loads(text.decode("utf-8", "surrogatepass")) if text else {}
        header = json.loads(numbers[8 : 8 + int.from_bytes(numbers[:8], "little")])["__metadata__"]
        steps = tensors["steps"].long().split(tensors["step_counts"].tolist())
        own = [int((s[:, 1] - s[:, 0]).sum()) for s in steps]
        tokens = tensors["tokens"].split(tensors["lengths"].tolist())
        logprobs = tensors["rollout_logprobs"].split(own)
        return cls(
            [Sequence(t, s, {"rollout_logprobs": p}) for t, s, p in zip(tokens, steps, logprobs, strict=True)],
            tensors["rewards"],
            tensors["groups"],
            tensors["policy_versions"],
            texts.get("episodes", []),
            json.loads(header["metrics"]),
            tensors["engines"],
            json.loads(header["engine_urls"]),
            texts.get("example", ""),
        )


def without_texts(data: bytes) -> memoryview:
    """The batch's numbers alone, as a batch; nothing is copied."""
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    return memoryview(data)[: _LENGTH_BYTES + size]


def first_episodes(groups: Int[Tensor, "episodes"], count: int) -> list[int]:
    """The first episode of each of the first ``count`` groups: those that are written down for readers."""
    first: dict[int, int] = {}
    for episode, group in enumerate(groups.tolist()):
        first.setdefault(group, episode)
    return sorted(first.values())[:count]


def engine_table(names: Iterable[str]) -> tuple[Int[Tensor, "episodes"], list[str]]:
    """``engines`` and ``engine_urls`` of a batch, from the engine of each episode (empty: unknown)."""
    given = list(names)
    urls = sorted({name for name in given if name})
    places = {url: index for index, url in enumerate(urls)}
    return torch.tensor([places.get(name, -1) for name in given], dtype=torch.long), urls
