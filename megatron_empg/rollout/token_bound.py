"""How many tokens a text has at least, known from its length: to cut 100 MB would take a minute and gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from megatron_empg.common.errors import EmpgError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COMPOSED = 4
"""Characters that Unicode's canonical composition makes one of, at most (such as alpha with three marks)."""
_KEEPS_LENGTH = {"NFD", "NFKD", "Prepend"}
_COMPOSES = {"NFC", "NFKC"}
_KEEPS_TEXT = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"}


class TooManyTokens(EmpgError, ValueError):
    """A text that cannot have as few tokens as it may; it has at least `fewest`."""

    def __init__(self, fewest: int, most: int) -> None:
        super().__init__(f"the text has at least {fewest} tokens; {most} are allowed")
        self.fewest = fewest


class TokenBound:
    """A token stands for no more characters than the longest of the vocabulary has.

    That holds where every character of a text becomes (part of) a token. A tokenizer that drops blanks or writes
    one token for whole words that it does not know has no bound, and `fewest` is 0.
    """

    def __init__(self, tokenizer: Tokenizer, state: Mapping[str, Any]) -> None:
        """`state`: the tokenizer's JSON; special tokens count as text."""
        matched = [token for token in state["added_tokens"] if not token["special"]]
        self._characters: int | None = None
        self._ascii_alone: int | None = None
        composed = _composed(state["normalizer"])
        eats_blanks = any(token["lstrip"] or token["rstrip"] for token in matched)
        if composed is None or eats_blanks or not _keeps_text(state):
            return
        contents = [token["content"] for token in matched]
        if tokenizer.normalizer is not None:
            contents += [tokenizer.normalizer.normalize_str(content) for content in contents]
        longest = max(map(len, [*_vocabulary(state["model"]), *contents]))
        self._characters = longest * composed
        # Unicode's forms leave ASCII as it is.
        self._ascii_alone = longest if composed == COMPOSED else self._characters

    def fewest(self, text: str) -> int:
        """Tokens that the text has at least."""
        if text.isascii():
            longest = self._ascii_alone
        else:
            longest = self._characters
        if longest is None:
            return 0
        return -(-len(text) // longest)


def _composed(normalizer: Mapping[str, Any] | None) -> int | None:
    """Characters of a text that a normalizer makes one of, at most; None where that is not known."""
    found = 1
    for step in _steps(normalizer, "normalizers"):
        if step["type"] in _COMPOSES:
            found *= COMPOSED
        elif step["type"] not in _KEEPS_LENGTH and not _replaces_with_as_much(step):
            return None
    return found


def _replaces_with_as_much(step: Mapping[str, Any]) -> bool:
    if step["type"] != "Replace":
        return False
    text = step["pattern"].get("String")
    return text is not None and len(step["content"]) >= len(text)


def _keeps_text(state: Mapping[str, Any]) -> bool:
    """Whether no character is lost before the model, and the model spells those that it does not know."""
    steps = list(_steps(state["pre_tokenizer"], "pretokenizers"))
    return all(map(_keeps, steps)) and _spells(state["model"], any(step["type"] == "ByteLevel" for step in steps))


def _keeps(step: Mapping[str, Any]) -> bool:
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in _KEEPS_TEXT


def _spells(model: Mapping[str, Any], byte_level: bool) -> bool:
    """Whether each byte has a token of its own."""
    from tokenizers.pre_tokenizers import ByteLevel

    if model["type"] not in ("BPE", "Unigram"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    wanted: Iterable[str] = []
    if byte_level:
        wanted = ByteLevel.alphabet()
    elif model.get("byte_fallback"):
        wanted = [f"<0x{byte:02X}>" for byte in range(256)]
    return bool(wanted) and set(_vocabulary(model)).issuperset(wanted)


def _vocabulary(model: Mapping[str, Any]) -> list[str]:
    """The texts of the model's tokens; a Unigram's stand with their scores."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return list(vocabulary)
    return [text for text, _ in vocabulary]


def _steps(part: Mapping[str, Any] | None, within: str) -> Iterable[Mapping[str, Any]]:
    """A normalizer's or pre-tokenizer's steps, those of sequences in sequences too."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part[within]:
        yield from _steps(step, within)
