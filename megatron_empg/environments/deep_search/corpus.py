"""The corpus: short documents of real facts, and the fact graph they spell out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_empg.environments.deep_search.json_lines import LineFault, json_lines, unpacked
from megatron_empg.environments.deep_search.text import normalise_answer, normalise_title


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
    """Documents, by title (in its normal form) and by the (entity, relation) they tell of.

    Raises ValueError for two titles that are the same, two facts of one relation, or what no turn could name.
    """

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
        title = _nameable("title", document.title, normalise_title(document.title), document)
        if title in self.by_title:
            other = self.by_title[title].title
            raise ValueError(
                f"corpus: two documents are titled {other!r} and {document.title!r}, which visits cannot tell "
                "apart (case, blanks and compatible characters do not matter); titles must be unique"
            )
        known = self.entity_types.setdefault(document.entity, document.entity_type)
        if known != document.entity_type:
            raise ValueError(f"corpus: {document.entity!r} is both a {known} and a {document.entity_type}")
        self.by_title[title] = document
        facts = self.facts.setdefault(document.entity, {})
        for fact in document.facts:
            if fact.relation in facts:
                raise ValueError(f"corpus: two facts tell the {fact.relation} of {document.entity!r}")
            _nameable(fact.relation, fact.object, normalise_answer(fact.object), document)
            facts[fact.relation] = fact
            self.located[document.entity, fact.relation] = document


def _nameable(what: str, text: str, normal_form: str, document: Document) -> str:
    """The normal form of a title or an answer. Raises ValueError for what no turn can say or no answer match."""
    if not normal_form:
        raise ValueError(f"corpus: the {what} {text!r} of the document {document.title!r} holds no word or number")
    if "<" in text or ">" in text:
        raise ValueError(
            f"corpus: the {what} {text!r} of the document {document.title!r} holds < or >, which no call can: "
            "they begin and end tags"
        )
    return normal_form


def load_corpus(path: str | Path) -> Corpus:
    """Read a corpus.jsonl: UTF-8, a document a line, compressed by gzip or not. Raises FileNotFoundError, or
    ValueError naming the line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no corpus at {path}; give environment.settings.corpus=FILE (docs/deep_search.md says what it holds)"
        )
    documents = []
    try:
        with path.open("rb") as file, unpacked(file) as plain:
            for number, row in json_lines(plain):
                documents.append(_on_line(number, row))
    except LineFault as fault:
        raise ValueError(f"{path}, {fault}" if fault.line else f"{path}: {fault}") from None
    if not documents:
        raise ValueError(f"{path}: holds no documents; write one a line, as docs/deep_search.md says")
    try:
        return Corpus(documents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _on_line(number: int, row: Any) -> Document:
    """Raises LineFault."""
    try:
        return _document(row)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeyError):
            fault = f"it has no {error.args[0]!r}"
        else:
            fault = str(error)
        raise LineFault(number, f"not a document ({fault})") from error


def _document(row: Any) -> Document:
    """A line's document. Raises KeyError, TypeError or ValueError."""
    if not isinstance(row, dict):
        raise TypeError(f"it holds {row!r:.40}, not an object with title, entity, type, facts and sentences")
    sentences = tuple(_text("a sentence", sentence) for sentence in _list("sentences", row["sentences"]))
    facts = tuple(_fact(fact) for fact in _list("facts", row["facts"]))
    if not facts or len(facts) != len(sentences):
        raise ValueError("needs one sentence a fact, and at least one")
    title, entity, kind = (_text(key, row[key]) for key in ("title", "entity", "type"))
    return Document(title, entity, kind, facts, sentences)


def _fact(fact: Any) -> Fact:
    if not isinstance(fact, list) or len(fact) != 3:
        raise TypeError(f"a fact is {fact!r:.60}, not [relation, object, object's type or null]")
    relation, object_, kind = fact
    return Fact(
        _text("a fact's relation", relation),
        _text("a fact's object", object_),
        None if kind is None else _text("a fact's object type", kind),
    )


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is {value!r:.40}, not a list")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{name} is {value!r:.40}, not a text")
    value.encode()  # half a surrogate pair, which JSON can spell, is no text
    return value
