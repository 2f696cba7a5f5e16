"""One training batch on its way from the driver to the trainer ranks: tensors and JSON, no pickle."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from megatron_empg.algorithms.base import Experience
from megatron_empg.rollout.service.experience import experience_from_tensors, experience_to_tensors
from megatron_empg.rollout.service.slots import StreamAccount
from megatron_empg.run.episode_text import EpisodeText
from megatron_empg.run.timeline import StepTimeline

_LENGTH_BYTES = 8
"""The batch begins with the length of its numbers in bytes; what follows them is text."""


def _nothing() -> Int[Tensor, "0"]:
    return torch.empty(0, dtype=torch.long)


@dataclass
class Batch:
    """The episodes to learn from, those of a question adjacent; errors and dropped groups are not among them."""

    experience: Experience
    policy_versions: Int[Tensor, "episodes 2"]
    """Oldest and newest policy version among the episode's own tokens."""
    texts: list[EpisodeText | None] = field(default_factory=list)
    """What a reader wants to see of each episode. On its way a batch keeps that of the episodes somebody will
    read; on the ranks but the first there is none."""
    metrics: dict[str, float] = field(default_factory=dict)
    """``train/…`` and ``rollout/…`` numbers of the whole rollout, dropped episodes included."""
    engines: Int[Tensor, "episodes"] = field(default_factory=_nothing)
    """Which of ``engine_urls`` sampled each episode; -1 where nobody said."""
    engine_urls: list[str] = field(default_factory=list)
    token_versions: Int[Tensor, "own_tokens"] = field(default_factory=_nothing)
    """The policy version that sampled each own token; where they are not given, its episode's oldest."""
    account: StreamAccount | None = None
    """Where the stream stands behind it, if it is one of a stream. Other ranks than the first have none."""
    example: str = ""
    """One episode that was played, to learn from or not, as a message shows it. Other ranks than the first have
    none."""
    untrained: list[EpisodeText] = field(default_factory=list)
    """Some that were played and are not to learn from, for readers: those that failed, and others where few are to
    learn from. Other ranks than the first have none."""
    timeline: StepTimeline | None = None
    """When the slowest episodes' turns took place, for readers. Other ranks than the first have none."""

    def __post_init__(self) -> None:
        if len(self.engines) != self.episodes:
            self.engines = torch.full((self.episodes,), -1, dtype=torch.long)
        tokens = self.experience.episode_lengths
        if len(self.token_versions) != int(tokens.sum()):
            self.token_versions = self.policy_versions[:, 0].repeat_interleave(tokens)

    @property
    def episodes(self) -> int:
        """How many there are."""
        return len(self.experience.rewards)

    def engine_of(self, episode: int) -> str:
        """The engine that sampled an episode, as a message names it."""
        index = int(self.engines[episode])
        if 0 <= index < len(self.engine_urls):
            return self.engine_urls[index]
        return "an engine that was not noted"

    def to_bytes(self, texts: int | None = None) -> bytes:
        """The numbers as a safetensors file, and behind it the texts as JSON.

        ``texts``: of how many episodes the text goes along, the `first_episodes`; of all when None.
        """
        from safetensors.torch import save

        tensors = experience_to_tensors(self.experience)
        tensors |= {"policy_versions": self.policy_versions, "engines": self.engines}
        tensors["token_versions"] = self.token_versions.to(torch.int32)
        header = {"metrics": json.dumps(self.metrics), "engine_urls": json.dumps(self.engine_urls)}
        numbers = save({name: t.contiguous() for name, t in tensors.items()}, header)
        # Text has no place in the header, whose size safetensors limits.
        behind: dict[str, Any] = {
            "episodes": self._readable(texts),
            "example": self.example,
            "untrained": [text.to_json() for text in self.untrained],
            "timeline": _json_of(self.timeline),
            "account": _json_of(self.account),
        }
        text = json.dumps(behind, ensure_ascii=False)
        return len(numbers).to_bytes(_LENGTH_BYTES, "little") + numbers + text.encode("utf-8", "surrogatepass")

    def _readable(self, count: int | None) -> list[dict[str, Any] | None]:
        """The texts as JSON, those of the `first_episodes` alone unless ``count`` is None."""
        kept = set(range(self.episodes))
        if count is not None:
            kept = set(first_episodes(self.experience.groups, count))
        readable: list[dict[str, Any] | None] = []
        for episode, text in enumerate(self.texts):
            readable.append(_json_of(text) if episode in kept else None)
        return readable

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
        behind = _behind(text)
        # A safetensors file begins with its header's length in 8 bytes and the header; the strings that went with
        # the tensors are in it, and `load` does not hand them over.
        header_end = 8 + int.from_bytes(numbers[:8], "little")
        strings = json.loads(numbers[8:header_end])["__metadata__"]
        batch = cls(
            experience_from_tensors(tensors),
            tensors["policy_versions"],
            _texts(behind),
            json.loads(strings["metrics"]),
            tensors["engines"],
            json.loads(strings["engine_urls"]),
            token_versions=tensors["token_versions"].long(),
            account=_account(behind),
            example=behind.get("example", ""),
            untrained=[EpisodeText.from_json(given) for given in behind.get("untrained", [])],
            timeline=_timeline(behind),
        )
        batch._check(len(tensors["engines"]), tensors["token_versions"])
        return batch

    def _check(self, engines: int, versions: Tensor) -> None:
        """Raises ValueError unless everything is of the same episodes and of its type."""
        own = len(self.experience.rollout_logprobs)
        if versions.shape != (own,) or versions.dtype != torch.int32:
            raise ValueError(f"token_versions is {versions.dtype} of {tuple(versions.shape)}, not int32 of {own}")
        if self.policy_versions.shape != (self.episodes, 2) or engines != self.episodes:
            raise ValueError(f"policy versions or engines are not of {self.episodes} episodes")
        if {self.policy_versions.dtype, self.engines.dtype} != {torch.int64}:
            raise ValueError("policy versions or engines are not int64")
        if not isinstance(self.metrics, dict) or not _are_all(self.metrics.values(), int | float):
            raise ValueError("metrics are not numbers by name")
        if not isinstance(self.engine_urls, list) or not _are_all([*self.engine_urls, self.example], str):
            raise ValueError("engine_urls or example are not text")
        if len(self.texts) not in (0, self.episodes):
            raise ValueError(f"there are {len(self.texts)} texts for {self.episodes} episodes")


def _are_all(values: Iterable[object], kind: type | UnionType) -> bool:
    return all(isinstance(value, kind) for value in values)


def account_in(data: bytes) -> StreamAccount | None:
    """Where the stream stands behind a batch that travels as these bytes. Raises ValueError for anything else."""
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        return _account(_behind(data[_LENGTH_BYTES + size :]))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"these {len(data)} bytes are not a batch: {error}") from error


def _behind(text: bytes) -> dict[str, Any]:
    """What stands behind the numbers."""
    found: dict[str, Any] = json.loads(text.decode("utf-8", "surrogatepass")) if text else {}
    return found


def _json_of(part: EpisodeText | StepTimeline | StreamAccount | None) -> dict[str, Any] | None:
    return None if part is None else part.to_json()


def _texts(behind: dict[str, Any]) -> list[EpisodeText | None]:
    texts: list[EpisodeText | None] = []
    for given in behind.get("episodes", []):
        texts.append(None if given is None else EpisodeText.from_json(given))
    return texts


def _timeline(behind: dict[str, Any]) -> StepTimeline | None:
    given = behind.get("timeline")
    return None if given is None else StepTimeline.from_json(given)


def _account(behind: dict[str, Any]) -> StreamAccount | None:
    given = behind.get("account")
    return None if given is None else StreamAccount.from_json(given)


def without_texts(data: bytes) -> memoryview:
    """The batch's numbers alone, as a batch; nothing is copied."""
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    return memoryview(data)[: _LENGTH_BYTES + size]


def first_episodes(groups: Int[Tensor, "episodes"], count: int) -> list[int]:
    """The ``count`` episodes that are written down for readers: the first of each group, then the second of each,
    and so on."""
    seen: Counter[int] = Counter()
    places = []
    for episode, group in enumerate(groups.tolist()):
        places.append((seen[group], episode))
        seen[group] += 1
    return sorted(episode for _, episode in sorted(places)[:count])


def engine_table(names: Iterable[str]) -> tuple[Int[Tensor, "episodes"], list[str]]:
    """``engines`` and ``engine_urls`` of a batch, from the engine of each episode (empty: unknown)."""
    given = list(names)
    urls = sorted({name for name in given if name})
    places = {url: index for index, url in enumerate(urls)}
    numbers = [places.get(name, -1) for name in given]
    return torch.tensor(numbers, dtype=torch.long), urls
