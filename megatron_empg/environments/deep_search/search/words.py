"""How text becomes words, the same for documents and for queries."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_empg.environments.deep_search.search.errors import MissingPackageError
from megatron_empg.environments.deep_search.text import UNSPACED

StopWords = Literal["none", "english"]
STOP_WORDS: tuple[StopWords, ...] = get_args(StopWords)

LONGEST_WORD = 64
"""Characters of a word that count. A longer one is a key, a URL or noise, and is known by its beginning."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")


@dataclass(frozen=True)
class WordRules:
    """The settings of `WordSplitter`; an index keeps those that it was built with."""

    stop_words: StopWords = "none"

    def __post_init__(self) -> None:
        if self.stop_words not in STOP_WORDS:
            raise ValueError(f"stop_words is {self.stop_words!r}; allowed: {', '.join(STOP_WORDS)}")


class WordSplitter:
    """Splits text into words: lower case, Unicode's compatible forms made one, without accents.

    >>> WordSplitter(WordRules())("Café № 5, 東京!")
    ['cafe', 'no', '5', '東', '京']
    """

    def __init__(self, rules: WordRules) -> None:
        self._dropped = _english() if rules.stop_words == "english" else frozenset()

    def __call__(self, text: str) -> list[str]:
        """The words in their order, repeated as often as they stand there."""
        found = _WORD.findall(fold(text))
        if len(text) > LONGEST_WORD:
            found = [word[:LONGEST_WORD] for word in found]
        if not self._dropped:
            return found
        return [word for word in found if word not in self._dropped]


def fold(text: str) -> str:
    """What two spellings of a word share."""
    if text.isascii():
        return text.lower()
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFKC", plain.casefold())


def _english() -> frozenset[str]:
    """Raises MissingPackageError."""
    try:
        from bm25s.stopwords import STOPWORDS_EN
    except ImportError as error:
        raise MissingPackageError(f"stop words need the package bm25s: pip install bm25s ({error})") from None
    return frozenset(STOPWORDS_EN)
