"""What an episode of Deep Search is about: one question, and the sets that questions are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron_empg.environments.base import Split


@dataclass(frozen=True)
class AskedQuestion:
    """A question and its right answers, the first of which is the one to teach.

    `kind` is what an evaluation tells apart; `facts` is what else a task's payload holds of it. Example::

        AskedQuestion("2hop__1", "Who founded the town?", ("Ada Example", "A. Example"), "musique", {"hops": 2})
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


class QuestionSet(Protocol):
    """Questions by split; `TaskSource` says what the methods promise."""

    def all(self, split: Split) -> Sequence[AskedQuestion]:
        """All questions of a split, in a fixed order."""
        ...

    def sample(self, split: Split, count: int, seed: int) -> list[AskedQuestion]:
        """`count` questions, the same for the same seed."""
        ...

    def fixed(self, split: Split, count: int) -> list[AskedQuestion]:
        """A fixed evaluation set; a shorter one is a prefix of a longer one."""
        ...
