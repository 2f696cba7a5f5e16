"""The corpus: short documents of real facts, and the fact graph they spell out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Fact(NamedTuple):
    """`relation` of the document's entity is `object`; `object_type` is set where the chain can go on."""

    relation: str
    object: str
    object_type: str | None


@dataclass(frozen=True)
class Document:
    """One page about one entity. The sentences of `text` are the `facts`, in the same order."""

    title: str
    entity: str
    entity_type: str
    facts: tuple[Fact, ...]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole page."""
        return " ".join(self.sentences)


class Corpus:
    """Documents, by title and by the (entity, relation) they tell of. Raises ValueError on duplicates."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = tuple(documents)
        self.by_title: dict[str, Document] = {}
        self.facts: dict[str, dict[str, Fact]] = {}
        self.entity_types: dict[str, str] = {}
        self.located: dict[tuple[str, str], Document] = {}
        for document in self.documents:
            self._add(document)
        self.relations = sorted({relation for _, relation in self.located})
        relations_of: dict[str, set[str]] = {}
        for entity, relation in self.located:
            relations_of.setdefault(self.entity_types[entity], set()).add(relation)
        self.relations_of = {kind: sorted(relations) for kind, relations in sorted(relations_of.items())}

    def _add(self, document: Document) -> None:
        if document.title in self.by_title:
            raise ValueError(f"corpus: two documents are titled {document.title!r}; titles must be unique")
        known = self.entity_types.setdefault(document.entity, document.entity_type)
        if known != document.entity_type:
            raise ValueError(f"corpus: {document.entity!r} is both a {known} and a {document.entity_type}")
        self.by_title[document.title] = document
        facts = self.facts.setdefault(document.entity, {})
        for fact in document.facts:
            if fact.relation in facts:
                raise ValueError(f"corpus: two facts tell the {fact.relation} of {document.entity!r}")
            facts[fact.relation] = fact
            self.located[document.entity, fact.relation] = document


def load_corpus(path: str | Path) -> Corpus:
    """Read a corpus.jsonl. Raises FileNotFoundError, or ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no corpus at {path}: `python tools/build_miniature.py` writes one")
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            facts = tuple(Fact(*fact) for fact in row["facts"])
            document = Document(row["title"], row["entity"], row["type"], facts, tuple(row["sentences"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a document ({error!r})") from error
        if not facts or len(facts) != len(document.sentences):
            raise ValueError(f"{path}, line {number}: needs one sentence a fact, and at least one")
        documents.append(document)
    return Corpus(documents)
