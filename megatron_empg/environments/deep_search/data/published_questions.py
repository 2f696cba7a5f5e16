"""The questions of every split, drawn by weight for training and in balance for evaluation."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import overload

from megatron_empg.environments.base import SPLITS, Split
from megatron_empg.environments.deep_search.data.mixture import allot, draw, interleaved, ranked
from megatron_empg.environments.deep_search.data.published_question import PublishedQuestion
from megatron_empg.environments.deep_search.data.question_files import LoadedSource, QuestionFiles, load_split

_log = logging.getLogger(__name__)
_WORD = re.compile(r"\w+")


class _Joined(Sequence[PublishedQuestion]):
    """The questions of a split's files, one file after the other."""

    def __init__(self, loaded: Sequence[LoadedSource]) -> None:
        self._stores = [source.questions for source in loaded]
        self._ends = list(accumulate(len(store) for store in self._stores))

    def __len__(self) -> int:
        if not self._ends:
            return 0
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> PublishedQuestion: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PublishedQuestion]: ...
    def __getitem__(self, index: int | slice) -> PublishedQuestion | Sequence[PublishedQuestion]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        for store, end in zip(self._stores, self._ends, strict=True):
            if place < end:
                return store[place - end]
        raise IndexError(index)


@dataclass(frozen=True)
class _Strata:
    """The questions of a file by hops and type, each group in its fixed order."""

    members: list[list[int]]

    @classmethod
    def of(cls, loaded: LoadedSource) -> _Strata:
        store = loaded.questions
        groups: dict[int, list[int]] = {}
        for index in ranked([question.id for question in store]):
            groups.setdefault(store.stratum_of[index], []).append(index)
        in_order = sorted(groups, key=lambda group: str(store.strata[group]))
        return cls([groups[group] for group in in_order])

    def order(self) -> Iterator[int]:
        """Every question once, the groups in turn as long as they last."""
        takers = [iter(group) for group in self.members]
        sizes = [len(group) for group in self.members]
        for group in interleaved([1.0] * len(sizes), sizes):
            yield next(takers[group])


class PublishedQuestions:
    """Question sets by split. A split's files are read when it is first asked for.

    Raises ValueError for a split without files, QuestionDataError for a broken file, OSError. Every file must be
    there from the start.
    """

    def __init__(self, files: QuestionFiles) -> None:
        self._files = files
        self._loaded: dict[Split, list[LoadedSource]] = {}
        self._strata: dict[Split, list[_Strata]] = {}
        self._lock = threading.Lock()
        for split in SPLITS:
            for source in files.of(split):
                _must_be_there(split, source.path)
                if source.aliases is not None:
                    _must_be_there(split, source.aliases)

    def loaded(self, split: Split) -> list[LoadedSource]:
        """The split's files, read, and what was left out of them."""
        with self._lock:
            if split not in self._loaded:
                sources = self._files.of(split)
                if not sources:
                    raise ValueError(f"questions.{split} names no file; give it at least one")
                self._loaded[split] = load_split(sources)
                self._warn_of_leaks(split)
            return self._loaded[split]

    def all(self, split: Split) -> Sequence[PublishedQuestion]:
        """All questions of a split, file after file."""
        return _Joined(self.loaded(split))

    def sample(self, split: Split, count: int, seed: int) -> list[PublishedQuestion]:
        """`count` questions, the same for the same seed and different as far as they last.

        Each file's share is its weight's, rounded down or up and exact on average. For evaluation a file's own
        share is dealt out evenly over hops and types.
        """
        loaded = self.loaded(split)
        rng = random.Random(f"{split} {seed}")
        shares = allot(self._weights(split, loaded), count, rng)
        drawn: list[PublishedQuestion] = []
        for number, share in enumerate(shares):
            store = loaded[number].questions
            if split == "train":
                indices = draw(len(store), share, rng)
            else:
                indices = _balanced(self._strata_of(split)[number], share, rng)
            drawn += [store[index] for index in indices]
        rng.shuffle(drawn)
        return drawn

    def fixed(self, split: Split, count: int) -> list[PublishedQuestion]:
        """The split's fixed evaluation set: files by weight, each file's hops and types in turn.

        A shorter set is a prefix of a longer one. Raises ValueError where the split has fewer questions.
        """
        loaded = self.loaded(split)
        sizes = [len(source.questions) for source in loaded]
        if count > sum(sizes):
            raise ValueError(f"fixed: {count} {split} questions were asked for; the files have {sum(sizes)}")
        orders = [strata.order() for strata in self._strata_of(split)]
        found = []
        for number in islice(interleaved(self._weights(split, loaded), sizes), count):
            index = next(orders[number])
            found.append(loaded[number].questions[index])
        return found

    def _warn_of_leaks(self, new: Split) -> None:
        """Say of each test split, once it and training are loaded, how much of it is asked in training too."""
        if "train" not in self._loaded:
            return
        tests = [split for split in self._loaded if split != "train" and new in ("train", split)]
        if not tests:
            return
        asked = {_words_of(question) for question in _Joined(self._loaded["train"])}
        for split in tests:
            questions = _Joined(self._loaded[split])
            leaked = sum(_words_of(question) in asked for question in questions)
            if leaked:
                _log.warning(
                    "questions.%s: %d of %d questions are asked in training too, word for word",
                    split, leaked, len(questions),
                )  # fmt: skip

    def _weights(self, split: Split, loaded: Sequence[LoadedSource]) -> list[float]:
        weights: list[float] = []
        for source in loaded:
            natural = 1.0
            if split == "train":
                natural = float(len(source.questions))
            weights.append(source.source.weight or natural)
        return weights

    def _strata_of(self, split: Split) -> list[_Strata]:
        if split not in self._strata:
            self._strata[split] = [_Strata.of(source) for source in self.loaded(split)]
        return self._strata[split]


def _words_of(question: PublishedQuestion) -> str:
    return " ".join(_WORD.findall(question.text.casefold()))


def _balanced(strata: _Strata, count: int, rng: random.Random) -> list[int]:
    """`count` questions evenly from the groups; where a group has too few, the others give more."""
    total = sum(map(len, strata.members))
    rounds, rest = divmod(count, total)
    drawn: list[int] = []
    for group in strata.members:
        drawn += group * rounds
    shuffled = [rng.sample(group, len(group)) for group in strata.members]
    rng.shuffle(shuffled)
    return drawn + list(islice(_Strata(shuffled).order(), rest))


def _must_be_there(split: Split, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"questions.{split}: there is no file {path}")
