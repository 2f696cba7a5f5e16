"""Plain text: how words are matched, and when two answers or two titles are the same."""

import re
import unicodedata

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
)
"""Letters of scripts that put no blanks between words, as a class of a regular expression has them. Each of them
counts as a word, in answers and in search."""
_ARTICLES = frozenset({"a", "an", "the"})
_ACCENTED = ("LATIN", "GREEK")
"""Scripts whose accents are often left out. In others a mark makes another letter."""
_MINUS = re.compile(r"(?:^|(?<=[\s(\[]))[-\u2010-\u2012\u2212](?=[0-9])")
_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")
_SHARP = re.compile(r"(?<=[^\W\d_])#")
# Stand for what belongs to a number or a name while punctuation is taken away; no text holds them.
_SIGN, _DOT, _HASH = "\ufdd0", "\ufdd1", "\ufdd2"
_CUT = " (cut)"
_KEPT = {_SIGN: "-", _DOT: ".", _HASH: "#"}


def cut(text: str, characters: int) -> str:
    """The text, or its beginning up to the end of a word, marked as cut."""
    if len(text) <= characters:
        return text
    kept = text[: characters - len(_CUT)]
    end = kept.rfind(" ")
    if end > len(kept) - 40:
        kept = kept[:end]
    return kept + _CUT


def words(text: str) -> list[str]:
    """Lower-case words of a query or a page; marks standing alone are dropped."""
    return [word for word in text.lower().split() if any(c.isalnum() for c in word)]


def normalise_answer(text: str) -> str:
    """What two answers must share to be the same, in any script.

    Unicode's compatible forms are one (full-width digits, ligatures), as are upper and lower case. Accents on
    Latin and Greek letters go. Punctuation separates words and is dropped; so are doubled blanks, and articles
    unless there is nothing else. Symbols stay ("c++", "5 °c"), and so do the sign and the point of a number
    ("-5", "3.5") and a sharp behind a letter ("c#").
    """
    plain = _SHARP.sub(_HASH, _POINT.sub(_DOT, _MINUS.sub(_SIGN, _folded(text).strip())))
    kept = "".join(_KEPT.get(letter, letter if _belongs(letter) else " ") for letter in plain).split()
    return " ".join([word for word in kept if word not in _ARTICLES] or kept)


def normalise_title(text: str) -> str:
    """Titles match whatever their case, their blanks and Unicode's compatible forms."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _folded(text: str) -> str:
    """Lower case, compatible forms, no accents, nothing invisible."""
    if text.isascii():
        return text.lower()
    kept: list[str] = []
    accented = False
    for letter in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()):
        category = unicodedata.category(letter)
        if category == "Cf" or (category == "Mn" and accented):
            continue
        if category != "Mn":
            accented = unicodedata.name(letter, "").startswith(_ACCENTED)
        kept.append(letter)
    return unicodedata.normalize("NFKC", "".join(kept))


def _belongs(letter: str) -> bool:
    """Whether it is part of a word: a letter, mark, digit or symbol. A minus between words is a hyphen."""
    if letter.isalnum():
        return True
    category = unicodedata.category(letter)
    return category[0] in "LMNS" and category != "Sk" and letter != "\u2212"
