"""The published forms of each dataset, told apart by their fields.

| dataset | fields of a record |
|---|---|
| hotpotqa | JSON array: _id, question, answer, type, level, supporting_facts, context |
| 2wikimultihopqa | the same, and evidences, answer_id; aliases are in a file of their own (id_aliases.json) |
| musique | JSON lines: id ("2hop__…"), question, answer, answer_aliases, answerable, paragraphs, … |
| bamboogle | CSV or JSON: Question, Answer, and "Answer 2" in the authors' sheet |
| webwalkerqa | JSON lines: question, answer, root_url, info {type or hop, domain, lang, difficulty_level, …} |
| nq | JSON lines: question, answer (a list) |
| triviaqa | {"Data": [{Question, QuestionId, Answer: {Value, Aliases, NormalizedAliases, …}}]} |
| jsonl | this project's own: id, question, answers, and type and hops where they are known |

Every dataset may also come as JSON lines of the form that retrieval toolkits share: id, question, golden_answers,
and metadata with some of the dataset's own fields.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_empg.environments.deep_search.data.published_question import PublishedQuestion, QuestionDataError
from megatron_empg.environments.deep_search.data.record_files import QuestionRecord, read_records
from megatron_empg.environments.deep_search.text import normalise_answer

Dataset = Literal["hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "webwalkerqa", "nq", "triviaqa", "jsonl"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
Aliases = Mapping[str, tuple[str, ...]]
"""Other names by Wikidata id ("Q42")."""
MOST_ANSWERS = 2000
MOST_CHARACTERS = 200_000
"""Of a question's answers, with each of which every answer of an episode is compared."""
MAX_HOPS = 20
_TWO_FACTS = 2  # HotpotQA and Bamboogle ask for two facts by construction
_WIKI_HOPS = {"comparison": 2, "inference": 2, "compositional": 2, "bridge_comparison": 4}
_MUSIQUE_TYPE = re.compile(r"(([2-9])hop[0-9]?)__")


@dataclass(frozen=True)
class _Parts:
    """What a reader takes from a record; an `id` of None asks for the record's number."""

    id: str | None
    text: str
    answers: list[str]
    type: str = "all"
    hops: int | None = None


@dataclass
class SkippedRecords:
    """Records that are sound and yet no questions to ask, by reason."""

    unanswerable: int = 0
    wordless: int = 0
    """Those whose every answer is punctuation alone, so that no answer could be compared with it."""
    repeated: int = 0
    """Those that are the same as one before, id and all."""


def read_questions(
    dataset: Dataset, path: Path, skipped: SkippedRecords, aliases: Aliases | None = None, name: str = ""
) -> Iterator[PublishedQuestion]:
    """The questions of a file; counts in `skipped` what it leaves out.

    `name` (the dataset's where it is empty) is what the questions' `dataset` says and begins their ids.

    Raises QuestionDataError for a file that is broken or without answers (a hidden test set), OSError.
    """
    named = name or dataset
    for record in read_records(path):
        if record.fields.get("answerable") is False:
            skipped.unanswerable += 1
            continue
        parts = _parts(dataset, record, aliases or {})
        answers = _distinct(parts.answers)
        if len(answers) > MOST_ANSWERS or sum(map(len, answers)) > MOST_CHARACTERS:
            raise QuestionDataError(
                path,
                record.place,
                f"a question has at most {MOST_ANSWERS} answers of {MOST_CHARACTERS} characters together; this "
                f"one has {len(answers)} of {sum(map(len, answers))}",
            )
        if not answers:
            skipped.wordless += 1
            continue
        own_id = parts.id or str(record.number)
        yield PublishedQuestion(f"{named}/{own_id}", parts.text, answers, parts.type, parts.hops, named)


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """2WikiMultiHopQA's id_aliases.json (JSON lines: Q_id, aliases, demonyms). Raises QuestionDataError."""
    found = {}
    for record in read_records(path):
        names = record.texts("aliases")
        if "demonyms" in record:
            names += record.texts("demonyms")
        found[record.text("Q_id")] = tuple(names)
    return found


def _parts(dataset: Dataset, record: QuestionRecord, aliases: Aliases) -> _Parts:
    if "golden_answers" in record:
        return _shared_form(dataset, record)
    if dataset == "2wikimultihopqa":
        return _wiki(record, aliases)
    return _OWN_FORMS[dataset](record)


def _hotpotqa(record: QuestionRecord) -> _Parts:
    named_type = _type(record, "type")
    return _Parts(record.text("_id"), record.text("question"), [record.text("answer")], named_type, _TWO_FACTS)


def _wiki(record: QuestionRecord, aliases: Aliases) -> _Parts:
    named_type = _type(record, "type")
    answers = [record.text("answer")]
    entity = record.fields.get("answer_id")
    if entity is not None and not isinstance(entity, str):
        raise record.fault("answer_id", "a text or absent")
    answers += aliases.get(entity or "", ())
    return _Parts(record.text("_id"), record.text("question"), answers, named_type, _WIKI_HOPS.get(named_type))


def _musique(record: QuestionRecord) -> _Parts:
    name = record.text("id")
    shape = _MUSIQUE_TYPE.match(name)
    if shape is None:
        raise record.fault("id", 'an id of the form "2hop__…" or "3hop1__…"')
    answers = [record.text("answer")]
    if "answer_aliases" in record:
        answers += record.texts("answer_aliases")
    return _Parts(name, record.text("question"), answers, shape[1], int(shape[2]))


def _bamboogle(record: QuestionRecord) -> _Parts:
    answers = [record.text("Answer", "answer")]
    if record.fields.get("Answer 2"):
        answers.append(record.text("Answer 2"))
    return _Parts(None, record.text("Question", "question"), answers, hops=_TWO_FACTS)


def _webwalkerqa(record: QuestionRecord) -> _Parts:
    """The dataset's page writes keys and values with capitals, its files without."""
    lower = _lower_keys(record)
    named_type = "all"
    if "info" in lower:
        info = _lower_keys(lower.child("info"))
        words = [_type(info, name) for name in ("type", "hop", "difficulty_level") if name in info]
        named_type = "_".join(words) or "all"
    return _Parts(None, lower.text("question"), [lower.text("answer")], named_type)


def _nq(record: QuestionRecord) -> _Parts:
    return _Parts(None, record.text("question"), _some(record, "answer"), hops=1)


def _triviaqa(record: QuestionRecord) -> _Parts:
    answer = record.child("Answer")
    answers = [answer.text("Value")]
    for name in ("Aliases", "NormalizedAliases"):
        if name in answer:
            answers += answer.texts(name)
    return _Parts(record.text("QuestionId"), record.text("Question"), answers, hops=1)


def _jsonl(record: QuestionRecord) -> _Parts:
    named_type = "all"
    if "type" in record:
        named_type = record.text("type")
    hops = _hops(record)
    return _Parts(record.text("id"), record.text("question"), _some(record, "answers"), named_type, hops)


_OWN_FORMS: dict[str, Callable[[QuestionRecord], _Parts]] = {
    "hotpotqa": _hotpotqa,
    "musique": _musique,
    "bamboogle": _bamboogle,
    "webwalkerqa": _webwalkerqa,
    "nq": _nq,
    "triviaqa": _triviaqa,
    "jsonl": _jsonl,
}


def _shared_form(dataset: Dataset, record: QuestionRecord) -> _Parts:
    """id, question, golden_answers, metadata: types and hops are read from the metadata as far as it has them."""
    named_type, hops = "all", None
    metadata: dict[str, Any] = record.fields.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise record.fault("metadata", "an object or absent")
    inside = QuestionRecord(record.path, f"{record.place}, inside metadata", record.number, metadata)
    if "type" in inside:
        named_type = _type(inside, "type")
    if dataset == "musique":
        steps = metadata.get("question_decomposition")
        if isinstance(steps, list) and steps:
            named_type, hops = f"{len(steps)}hop", len(steps)
    elif dataset == "2wikimultihopqa":
        hops = _WIKI_HOPS.get(named_type)
    elif dataset in ("hotpotqa", "bamboogle"):
        hops = _TWO_FACTS
    elif dataset in ("nq", "triviaqa"):
        hops = 1
    return _Parts(record.text("id"), record.text("question"), _some(record, "golden_answers"), named_type, hops)


def _type(record: QuestionRecord, name: str) -> str:
    """A type of question in one spelling: "Bridge-Comparison" is "bridge_comparison"."""
    return "_".join(re.split(r"[\s_-]+", record.text(name).lower()))


def _hops(record: QuestionRecord) -> int | None:
    value = record.fields.get("hops")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_HOPS:
        raise record.fault("hops", f"a whole number from 1 to {MAX_HOPS}, null or absent")
    return value


def _some(record: QuestionRecord, name: str) -> list[str]:
    """A list of texts with at least one that is not blank."""
    found = record.texts(name)
    if not found:
        raise record.fault(name, "a list with at least one text that is not blank")
    return found


def _lower_keys(record: QuestionRecord) -> QuestionRecord:
    fields = {key.lower().replace(" ", "_"): value for key, value in record.fields.items()}
    return QuestionRecord(record.path, record.place, record.number, fields)


def _distinct(answers: list[str]) -> tuple[str, ...]:
    """Each answer once, in order, without those of which nothing is left to compare."""
    worded = filter(normalise_answer, answers)
    return tuple(dict.fromkeys(worded))
