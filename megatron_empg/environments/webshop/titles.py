"""Whether two titles name the same kind of thing: the share of a goal's nouns that a purchase has too.

WebShop takes the nouns from a spaCy model. Where none is given, `WordTitles` counts all words that are no function
words: a named substitute, whose scores are not WebShop's (docs/webshop.md says how far they differ).
"""

from __future__ import annotations

import re
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from megatron_empg.common.errors import EmpgError

NO_NOUNS = 0.2
"""The score where the goal's title has no noun."""
_NOUNS = ("NOUN", "PROPN")
_WORD = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*")
_LETTER = re.compile(r"[^\W\d_]")
_FUNCTION_WORDS = frozenset(
    """
    a about above after all also an and any are as at be been before below between both but by can could do
    does each every few for from had has have he her here him his how i if in into is it its just made make
    makes many may me more most much my new no non not of off on one only or other our out over own per she
    should so some such than that the their them then there these they this those three through to too two
    under up upon very was we were what when where which while who will with within without would you your
    """.split()  # noqa: SIM905 - one word a line would be a page of them
)


class SpacyModelError(EmpgError, ValueError):
    """The model of the setting `spacy_model` cannot be had."""


class Titles(Protocol):
    """Scores titles; `name` says by what."""

    name: str
    published: bool
    """Whether the scores are WebShop's."""

    def score(self, bought: str, wanted: str) -> float:
        """The share of the wanted title's nouns that are among the bought one's."""
        ...


class WordTitles:
    """The substitute: every word counts that has a letter and is no function word.

    >>> WordTitles().score("red shoes for men", "shoes with laces")
    0.5
    """

    name = "word-overlap title score"
    published = False

    def score(self, bought: str, wanted: str) -> float:
        """The share of the wanted title's words that are among the bought one's."""
        return share_of(_content_words(bought), _content_words(wanted))


class SpacyTitles:
    """WebShop's score, by the model that is named, which is loaded when the first purchase is scored."""

    published = True

    def __init__(self, model: str) -> None:
        self.name = f"spaCy {model}"
        self._model = model
        self._loaded: Any = None
        self._lock = threading.Lock()

    def score(self, bought: str, wanted: str) -> float:
        """The share of the wanted title's nouns that are among the bought one's. Raises SpacyModelError."""
        return share_of(self._nouns(bought), self._nouns(wanted))

    def _nouns(self, title: str) -> list[str]:
        with self._lock:  # spaCy does not say that threads may share a model
            parsed = self._pipeline()(title)
        return [token.text.lower() for token in parsed if token.pos_ in _NOUNS]

    def _pipeline(self) -> Any:
        if self._loaded is None:
            self._loaded = _load(self._model)
        return self._loaded


def share_of(bought: list[str], wanted: list[str]) -> float:
    """Different words of `wanted` that are in `bought`, per word of `wanted`: a repeated one counts once above and
    each time below, as in WebShop."""
    if not wanted:
        return NO_NOUNS
    return len(set(bought) & set(wanted)) / len(wanted)


def _content_words(title: str) -> list[str]:
    words = _WORD.findall(title.lower())
    return [word for word in words if _LETTER.search(word) and word not in _FUNCTION_WORDS]


def require_model(model: str) -> None:
    """Raises SpacyModelError where spaCy or the model is not installed; neither is loaded."""
    if find_spec("spacy") is None:
        raise SpacyModelError(
            f"spacy_model is {model!r}, and the package spacy is not here: pip install 'megatron_empg[webshop]', "
            "or leave the setting out for the substitute title score"
        )
    # Any folder of a model has the file.
    is_folder = (Path(model) / "config.cfg").is_file()
    if not is_folder and not (model.isidentifier() and find_spec(model) is not None):
        raise SpacyModelError(
            f"spacy_model is {model!r}, which is neither an installed package nor a folder with a config.cfg: "
            f"python -m spacy download {model}"
        )


def _load(model: str) -> Any:
    require_model(model)
    import spacy

    try:
        return spacy.load(model)
    except (OSError, ImportError, ValueError) as error:
        if str(error):
            told = str(error).splitlines()[0]
        else:
            told = type(error).__name__
        raise SpacyModelError(
            f"spacy_model {model!r} cannot be loaded ({told:.200}); get one for your version of spaCy: "
            f"python -m spacy download {model}"
        ) from None
