"""What a policy is shown of results and pages, of bounded length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.environments.deep_search.search.bm25_index import MOST_RESULTS, Hit
from megatron_empg.environments.deep_search.search.passages import Page
from megatron_empg.environments.deep_search.search.words import fold

_SEARCHED = 100_000
"""Characters of a text among which a snippet is looked for; later ones never make it."""
_CUT = " (cut)"


@dataclass(frozen=True)
class Shown:
    """How much is shown: results, characters of each result's snippet, and of the whole observation."""

    top_k: int = 3
    snippet_characters: int = 800
    observation_characters: int = 4000

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MOST_RESULTS:
            raise ValueError(f"top_k is {self.top_k}; it lies between 1 and {MOST_RESULTS}")
        for name in ("snippet_characters", "observation_characters"):
            if getattr(self, name) < 40:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 40 or more")


def results(hits: Sequence[Hit], query: str, shown: Shown) -> str:
    """Numbered, a line each: the title and the part of the text that has most of the query's words."""
    if not hits:
        return "no results"
    lines = ["found"]
    for number, hit in enumerate(hits[: shown.top_k], start=1):
        lines.append(f"{number} {hit.title} : {snippet(hit.text, query, shown.snippet_characters)}".rstrip())
    return cut("\n".join(lines), shown.observation_characters)


def page(found: Page | None, shown: Shown) -> str:
    """The whole page, or its beginning."""
    if found is None:
        return "no page"
    return cut(f"page {found.title} : {found.text}", shown.observation_characters)


def snippet(text: str, query: str, characters: int) -> str:
    """The part of a text that has most of the query's words, in one line; the whole text where it fits."""
    plain = " ".join(text[:_SEARCHED].split())
    if len(plain) <= characters:
        return plain
    begin = _best_begin(plain, query, characters)
    part = plain[begin : begin + characters]
    if begin:
        part = part[part.find(" ") + 1 :]
    return cut(part + " ", len(part)) if begin + characters < len(plain) else part


def cut(text: str, characters: int) -> str:
    """The text, or its beginning up to the end of a word, marked as cut."""
    if len(text) <= characters:
        return text
    kept = text[: characters - len(_CUT)]
    end = kept.rfind(" ")
    if end > len(kept) - 40:
        kept = kept[:end]
    return kept + _CUT


def _best_begin(text: str, query: str, characters: int) -> int:
    """Where the part begins that has most different words of the query; the first of equal ones."""
    wanted = set(re.findall(r"\w+", fold(query)))
    places = [(match.start(), fold(match[0])) for match in re.finditer(r"\w+", text)]
    places = [(start, word) for start, word in places if word in wanted]
    best, begin, first = 0, 0, 0
    inside: dict[str, int] = {}
    for start, word in places:
        inside[word] = inside.get(word, 0) + 1
        while start - places[first][0] > characters * 3 // 4:
            left = places[first][1]
            inside[left] -= 1
            if not inside[left]:
                del inside[left]
            first += 1
        if len(inside) > best:
            best, begin = len(inside), places[first][0]
    return _sentence_begin(text, begin, characters // 8)


def _sentence_begin(text: str, place: int, furthest: int) -> int:
    """The beginning of the sentence that `place` lies in, where it is near; else a word a little before."""
    before = text.rfind(". ", max(0, place - furthest), place)
    if before >= 0:
        return before + 1
    return 0 if place <= furthest else text.rfind(" ", 0, place)
