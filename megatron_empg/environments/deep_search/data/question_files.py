"""Which files of questions each split takes, and how they are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, model_validator

from megatron_empg.environments.base import Split
from megatron_empg.environments.deep_search.data.published_formats import (
    Dataset,
    SkippedRecords,
    read_aliases,
    read_questions,
)
from megatron_empg.environments.deep_search.data.published_question import QuestionDataError
from megatron_empg.environments.deep_search.data.question_store import QuestionStore
from megatron_empg.environments.settings import DataFile, EnvironmentSettings

MAX_TYPES = 1000
"""Types of question that one file may tell apart; more are no types."""


class QuestionSource(EnvironmentSettings):
    """A file of questions.

    `dataset` says how to read it, `name` what reports call it (the dataset's name where none is given). `aliases`
    is 2WikiMultiHopQA's id_aliases.json. `weight` is the file's share of a mixture, relative to the split's other
    files; without one, files count by their questions in training and alike in evaluation. `limit` keeps so many
    questions, drawn evenly from the whole file and always the same.
    """

    dataset: Dataset
    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")] | None = None
    path: DataFile
    aliases: DataFile | None = None
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _aliases_fit(self) -> QuestionSource:
        if self.aliases is not None and self.dataset != "2wikimultihopqa":
            raise ValueError(f"aliases are a file of 2wikimultihopqa; {self.dataset} has none")
        return self


class QuestionFiles(EnvironmentSettings):
    """The files of each split. For instance, in YAML::

    train:
      - {dataset: hotpotqa, path: data/hotpot_train_v1.1.json, weight: 2}
      - {dataset: 2wikimultihopqa, path: data/2wiki/train.json, weight: 1}
    test_id:
      - {dataset: hotpotqa, path: data/hotpot_dev_fullwiki_v1.json, limit: 500}
    test_ood:
      - {dataset: musique, path: data/musique_ans_v1.0_dev.jsonl}
    """

    train: list[QuestionSource] = Field(default_factory=list)
    test_id: list[QuestionSource] = Field(default_factory=list)
    test_ood: list[QuestionSource] = Field(default_factory=list)

    def of(self, split: Split) -> list[QuestionSource]:
        """The files of a split."""
        by_split = {"train": self.train, "test_id": self.test_id, "test_ood": self.test_ood}
        if split not in by_split:
            raise ValueError(f"split {split!r} is unknown; allowed: {', '.join(by_split)}")
        return by_split[split]

    @model_validator(mode="after")
    def _weights_agree(self) -> QuestionFiles:
        for name in ("train", "test_id", "test_ood"):
            weighted = [source.weight is not None for source in getattr(self, name)]
            if any(weighted) and not all(weighted):
                raise ValueError(f"{name}: either every file has a weight or none")
        return self


@dataclass
class LoadedSource:
    """A file that was read: its questions, and the records left out of them."""

    source: QuestionSource
    questions: QuestionStore
    skipped: SkippedRecords = field(default_factory=SkippedRecords)


def load_source(source: QuestionSource, name: str = "") -> LoadedSource:
    """Read a file whole; `name` is what its questions' ids begin with.

    A record that repeats another, id and all, is left out. Raises QuestionDataError for a broken file, for two
    different questions of one id, and where no question is left; OSError where the file cannot be opened.
    """
    named = name or source.name or source.dataset
    loaded = LoadedSource(source, QuestionStore(named))
    _fill(loaded)
    if not loaded.questions:
        raise QuestionDataError(source.path, "", f"no question in it can be asked ({loaded.skipped})")
    if source.limit is not None and source.limit < len(loaded.questions):
        chosen = random.Random("limit").sample(range(len(loaded.questions)), source.limit)
        loaded.questions = loaded.questions.picked(sorted(chosen))
    return loaded


def load_split(sources: Sequence[QuestionSource]) -> list[LoadedSource]:
    """Read every file of a split; a second file of one name is numbered ("nq.2"). Raises as `load_source` does."""
    times: dict[str, int] = {}
    loaded = []
    for source in sources:
        name = source.name or source.dataset
        times[name] = times.get(name, 0) + 1
        if times[name] > 1:
            name = f"{name}.{times[name]}"
        loaded.append(load_source(source, name))
    return loaded


def _fill(loaded: LoadedSource) -> None:
    source, store, skipped = loaded.source, loaded.questions, loaded.skipped
    aliases = None
    if source.aliases is not None:
        aliases = read_aliases(source.aliases)
    by_id: dict[str, int] = {}
    for question in read_questions(source.dataset, source.path, skipped, aliases, store.dataset):
        before = by_id.setdefault(question.id, len(store))
        if before == len(store):
            store.append(question)
        elif store[before] == question:
            skipped.repeated += 1
        else:
            fault = f'id "{question.id}" stands for two different questions; ids must be unique'
            raise QuestionDataError(source.path, "", fault)
        if len(store.strata) > MAX_TYPES:
            fault = f"its questions are of over {MAX_TYPES} types; a type is what many questions have in common"
            raise QuestionDataError(source.path, f"question {question.id}", fault)
