"""Plain text: how words are matched, and when two answers are the same."""

import re
import unicodedata

_ARTICLES = frozenset({"a", "an", "the"})


def words(text: str) -> list[str]:
    """Lower-case words of a query or a page; marks standing alone are dropped."""
    return [word for word in text.lower().split() if any(c.isalnum() for c in word)]


def normalise_answer(text: str) -> str:
    """Lower case, no accents, punctuation, articles or doubled blanks (the rule of SQuAD's exact match)."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    kept = re.sub(r"[^a-z0-9]+", " ", plain).split()
    return " ".join(word for word in kept if word not in _ARTICLES)


def normalise_title(text: str) -> str:
    """Titles match whatever their case and blanks."""
    return " ".join(text.lower().split())
