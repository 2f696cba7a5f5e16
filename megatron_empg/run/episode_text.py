"""What a reader sees of an episode: its texts, and beside each turn's what the algorithm made of it.

As JSON an episode is an object with ``task_id, question, outcome, prompt, reward, error`` and ``turns``, each with
``text, observation``. In the run folder it also has ``step`` and, where it was trained on, ``advantage`` (of the
whole episode), and a turn ``entropy`` (nats, mean over its own tokens), ``advantage`` (final), ``tokens`` and,
under a modulation, ``h_norm, g, bonus``.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TurnText:
    """What was said, and what came of it; None where nothing did."""

    text: str
    observation: str | None = None


@dataclass(frozen=True)
class EpisodeText:
    """An episode as it was played."""

    task_id: str
    question: str
    outcome: str
    turns: list[TurnText]
    prompt: str = ""
    """What the policy read before its first turn, as the chat template wrote it; empty where it was not kept."""
    reward: float = 0.0
    """What the environment gave."""
    error: str | None = None
    """Why it ended, where it failed."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "EpisodeText":
        """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""
        turns = [TurnText(_text(turn, "text"), turn["observation"]) for turn in given["turns"]]
        prompt, error = given.get("prompt", ""), given.get("error")
        if not isinstance(prompt, str) or not isinstance(error, str | None):
            raise TypeError("prompt or error is not text")
        return cls(
            _text(given, "task_id"),
            _text(given, "question"),
            _text(given, "outcome"),
            turns,
            prompt,
            float(given.get("reward", 0.0)),
            error,
        )


def _text(given: dict[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, not text")
    return value


@dataclass(frozen=True)
class TurnNumbers:
    """What a turn was trained on; the last three with a modulation alone (see `ModulatedAdvantages`)."""

    entropy: float
    """Mean over the turn's own tokens, nats."""
    advantage: float
    """The final one."""
    tokens: int
    """Own tokens."""
    h_norm: float | None = None
    g: float | None = None
    bonus: float | None = None


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode of a training step, and what the algorithm made of it."""

    step: int
    text: EpisodeText
    reward: float
    advantage: float
    """Of the whole episode, before modulation."""
    turns: list[TurnNumbers]

    def to_json(self) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for said, numbers in zip(self.text.turns, self.turns, strict=True):
            known = {name: value for name, value in asdict(numbers).items() if value is not None}
            turns.append({**asdict(said), **known})
        whole = {"step": self.step, "reward": self.reward, "advantage": self.advantage}
        return {**self.text.to_json(), **whole, "turns": turns}


@dataclass(frozen=True)
class UntrainedRecord:
    """An episode of a training step that was played and not trained on."""

    step: int
    text: EpisodeText

    def to_json(self) -> dict[str, Any]:
        return {**self.text.to_json(), "step": self.step}
