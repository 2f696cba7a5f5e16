"""The miniature as `slurm/prepare.sh` leaves published data: questions in their formats, an index, prepared.json.

What a job trains on is made of it as of a folder with 21 million pages. Questions take two facts in training, as
HotpotQA's do, and three out of distribution. They begin at countries: a policy as small as the rehearsals' spells
those, where it would mistake most of the thousands of cities.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_empg.environments.base import Split
from megatron_empg.environments.deep_search.corpus import Corpus, load_corpus
from megatron_empg.environments.deep_search.data.published_formats import Dataset
from megatron_empg.environments.deep_search.questions import Question, SplitRules, split_questions
from megatron_empg.environments.deep_search.search.index_build import build_index
from megatron_empg.launch.prepared_data import DataChoice, data_overrides
from megatron_empg.prepare.manifest import (
    PreparedFile,
    PreparedFolder,
    PreparedIndex,
    PreparedQuestions,
    write_prepared,
)
from megatron_empg.recipe import Recipe
from tests.recipes.recipe_files import ROOT

CORPUS = ROOT / "recipes/miniature/corpus.jsonl"
BEGIN_AT = "country"
MOST_QUESTIONS = 2000
"""Of each file."""


def prepare_miniature(folder: Path) -> Path:
    """Make the folder; takes two seconds."""
    corpus = load_corpus(CORPUS)
    folder.mkdir(parents=True, exist_ok=True)
    pages = _write(folder, "corpus/pages.jsonl", _lines(_pages(corpus)))
    build_index(folder / pages.path, folder / "index", progress=lambda text: None)
    size = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file())
    prepared = PreparedFolder(
        questions=_questions(folder, corpus),
        corpus=pages,
        index=PreparedIndex(path="index", size=size, of_sha256=pages.sha256),
    )
    write_prepared(folder, prepared)
    return folder


def data_words(recipe: Recipe, folder: Path) -> list[str]:
    """What a job gives the recipe of a prepared folder, its model aside."""
    return data_overrides(recipe, ["model.path=another"], DataChoice(folder))


def question_id(task_id: str) -> str:
    """The miniature's own id of a question, from that of the published one's task."""
    _, _, own = task_id.partition("/")
    return own.partition("__")[2] if own.startswith("3hop1__") else own


def _pages(corpus: Corpus) -> list[dict[str, Any]]:
    """As wiki-18 has them."""
    return [
        {"id": str(number), "contents": f"{page.title}\n{page.text}"}
        for number, page in enumerate(corpus.documents)
    ]


def _questions(folder: Path, corpus: Corpus) -> dict[str, list[PreparedQuestions]]:
    found = split_questions(corpus, SplitRules.fitted(corpus, {}))
    splits: dict[Split, tuple[Dataset, int, Callable[[list[Question]], str]]] = {
        "train": ("hotpotqa", 2, _hotpotqa),
        "test_id": ("hotpotqa", 2, _hotpotqa),
        "test_ood": ("musique", 3, _musique),
    }
    made: dict[str, list[PreparedQuestions]] = {}
    for split, (dataset, hops, written) in splits.items():
        of_split = [question for kind in found[split].values() for question in kind]
        chosen = [
            question
            for question in of_split
            if len(question.relations) == hops and question.entity_type == BEGIN_AT
        ]
        chosen.sort(key=lambda question: hashlib.sha256(question.id.encode()).digest())
        file = _write(folder, f"questions/{dataset}/{split}.json", written(chosen[:MOST_QUESTIONS]))
        made[split] = [PreparedQuestions(dataset=dataset, file=file)]
    return made


def _hotpotqa(questions: list[Question]) -> str:
    """One JSON array."""
    records = [
        {
            "_id": question.id, "question": question.text, "answer": question.answer, "type": "bridge",
            "level": "medium", "supporting_facts": [], "context": [],
        }
        for question in questions
    ]  # fmt: skip
    return json.dumps(records)


def _musique(questions: list[Question]) -> str:
    """A JSON object a line."""
    return _lines([
        {
            "id": f"3hop1__{question.id}", "question": question.text, "answer": question.answer,
            "answer_aliases": [], "answerable": True, "paragraphs": [],
        }
        for question in questions
    ])  # fmt: skip


def _lines(records: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(folder: Path, name: str, text: str) -> PreparedFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    size = path.stat().st_size
    return PreparedFile(path=name, size=size, sha256=digest, origin="the miniature", checked="first fetch")
