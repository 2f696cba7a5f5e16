"""Many questions in little memory: texts packed into a block of bytes, an object made when one is asked for.

500,000 questions of twelve words with two answers take 75 MB here and 265 MB more as objects.
"""

import json
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

from megatron_empg.environments.deep_search.data.published_question import PublishedQuestion


class Stratum(NamedTuple):
    """What an evaluation balances within a dataset."""

    hops: int | None
    type: str


class QuestionStore(Sequence[PublishedQuestion]):
    """The questions of one dataset, in order."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.strata: list[Stratum] = []
        self._numbers: dict[Stratum, int] = {}
        self.stratum_of = array("H")
        """Index into `strata`, by question."""
        self._packed = bytearray()
        self._ends = array("Q")

    def append(self, question: PublishedQuestion) -> None:
        """Add a question of the store's dataset. Raises UnicodeEncodeError for lone surrogates."""
        stratum = Stratum(question.hops, question.type)
        number = self._numbers.setdefault(stratum, len(self.strata))
        if number == len(self.strata):
            self.strata.append(stratum)
        fields = [question.id, question.text, *question.answers]
        self._packed += json.dumps(fields, ensure_ascii=False).encode()
        self._ends.append(len(self._packed))
        self.stratum_of.append(number)

    def picked(self, indices: Iterable[int]) -> "QuestionStore":
        """A store of these questions alone."""
        chosen = QuestionStore(self.dataset)
        for index in indices:
            chosen.append(self[index])
        return chosen

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> PublishedQuestion: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PublishedQuestion]: ...
    def __getitem__(self, index: int | slice) -> PublishedQuestion | Sequence[PublishedQuestion]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        start = 0
        if place:
            start = self._ends[place - 1]
        name, text, *answers = json.loads(self._packed[start : self._ends[place]])
        stratum = self.strata[self.stratum_of[place]]
        return PublishedQuestion(name, text, tuple(answers), stratum.type, stratum.hops, self.dataset)
