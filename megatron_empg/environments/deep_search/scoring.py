"""Who decides what an answer earns in an episode: the gold answers alone, or a judge as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_empg.environments.deep_search.answers import AnswerVerdict, NormalForm, scored, verdict
from megatron_empg.environments.deep_search.judge import Judge


class AnswerScore(Protocol):
    """What the answers to one question earn."""

    async def verdict(self, answer: str) -> AnswerVerdict:
        """The reward of an answer. What it raises ends the episode as an error."""
        ...


@dataclass(frozen=True)
class GoldAnswerScore:
    """Scores an answer against gold answers: 1 for an exact match, or the F1."""

    golds: tuple[str, ...]
    mode: Literal["exact", "f1"] = "exact"
    form: NormalForm = "project"

    async def verdict(self, answer: str) -> AnswerVerdict:
        return verdict(await scored(answer, self.golds, self.form), self.mode)


@dataclass(frozen=True)
class JudgedAnswerScore:
    """Scores an answer by a judge where no gold answer matches exactly."""

    judge: Judge
    question: str
    golds: tuple[str, ...]
    form: NormalForm = "project"

    async def verdict(self, answer: str) -> AnswerVerdict:
        return await self.judge.verdict(self.question, answer, self.golds, self.form)
