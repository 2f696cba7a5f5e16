"""When an answer is right: exact match and token F1 against several gold answers, and the reward that follows.

Two forms of a text are compared. "project" is `text.normalise_answer`, made for any script. "published" is what
the official scripts of SQuAD, HotpotQA, 2WikiMultiHopQA and MuSiQue compare, for figures that stand beside theirs.
They differ: the published form joins what punctuation parts ("U.S." is "us", "3.5" is "35"), drops the sign of a
number, and keeps accents and every punctuation mark beyond ASCII; the project's form does the opposite.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_empg.environments.blocking import in_thread
from megatron_empg.environments.deep_search.text import UNSPACED, normalise_answer

RewardMode = Literal["exact", "f1", "judge"]
"""What an answer earns: 1 for an exact match, its F1, or 1 where a judge calls it right."""
NormalForm = Literal["project", "published"]

_AT_ONCE = 20_000
"""Characters of an answer and its gold answers that are compared in a few milliseconds."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_DECISIVE = frozenset({"yes", "no", "noanswer"})
"""Answers of which a part counts for nothing: "no" is not half of "no one"."""
_UNSPACED = re.compile(f"[{UNSPACED}]")


@dataclass(frozen=True)
class AnswerMatch:
    """How an answer compares with the gold answers: the best of them counts."""

    exact: bool
    f1: float


@dataclass(frozen=True)
class AnswerVerdict:
    """What an answer earns, and whether the episode succeeded.

    Under `f1` an answer may earn something and be wrong: only an exact match succeeds.
    """

    reward: float
    success: bool
    score: AnswerMatch


def published_form(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and doubled blanks, as the official scripts do."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def exact(answer: str, golds: Sequence[str], form: NormalForm = "project") -> bool:
    """Whether the answer equals one of the gold answers. What has no word in it equals nothing.

    Raises ValueError without gold answers.
    """
    return score(answer, golds, form).exact


def f1(answer: str, golds: Sequence[str], form: NormalForm = "project") -> float:
    """The best harmonic mean of precision and recall over words. Raises ValueError without gold answers.

    "yes", "no" and "noanswer" match whole or not at all, as in HotpotQA's script. In the project's form a letter
    of a script without blanks is a word.
    """
    return score(answer, golds, form).f1


def score(answer: str, golds: Sequence[str], form: NormalForm = "project") -> AnswerMatch:
    """Exact match and F1. Raises ValueError without gold answers."""
    if not golds:
        raise ValueError("an answer is compared with at least one gold answer; there is none")
    given = _normal(answer, form)
    tokens = Counter(_tokens(given, form))  # once: an answer may be long, and have hundreds of gold answers
    size = tokens.total()
    matches, best = False, 0.0
    for gold in golds:
        wanted = _normal(gold, form)
        matches = matches or (given == wanted and given != "")
        if given == wanted or _DECISIVE.isdisjoint({given, wanted}):
            best = max(best, _overlap(tokens, size, Counter(_tokens(wanted, form))))
    return AnswerMatch(matches, best)


async def scored(answer: str, golds: Sequence[str], form: NormalForm = "project") -> AnswerMatch:
    """Like `score`; long work is done in a thread, since all episodes share the event loop."""
    if len(answer) + sum(map(len, golds)) <= _AT_ONCE:
        return score(answer, golds, form)
    return await in_thread(score, answer, golds, form)


def verdict(found: AnswerMatch, mode: Literal["exact", "f1"]) -> AnswerVerdict:
    """What an answer of this score earns without a judge."""
    if mode == "f1":
        reward = found.f1
    else:
        reward = float(found.exact)
    return AnswerVerdict(reward, found.exact, found)


def _normal(text: str, form: NormalForm) -> str:
    if form == "project":
        return normalise_answer(text)
    return published_form(text)


def _overlap(ours: Counter[str], size: int, theirs: Counter[str]) -> float:
    """The F1 of two bags of words, of which ours has `size` words."""
    shared = (theirs & ours).total()
    if not shared:
        return 0.0
    return 2 * shared / (size + theirs.total())


def _tokens(normal: str, form: NormalForm) -> list[str]:
    if form == "project" and not normal.isascii():
        normal = _UNSPACED.sub(r" \g<0> ", normal)
    return normal.split()
