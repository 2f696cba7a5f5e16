"""How results and pages are written for a policy. The episode bounds the length of the whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_empg.environments.deep_search.search.bm25_index import Hit
from megatron_empg.environments.deep_search.search.passages import TitlePage
from megatron_empg.environments.deep_search.search.result_limits import ResultLimits
from megatron_empg.environments.deep_search.search.words import fold
from megatron_empg.environments.deep_search.text import cut

__all__ = ["ResultLimits", "page", "results", "snippet"]

_SEARCHED = 100_000
"""Characters of a text among which a snippet is looked for; later ones never make it."""


def results(hits: Sequence[Hit], query: str, shown: ResultLimits) -> str:
    """Numbered, a line each: the title and the part of the text that has most of the query's words."""
    if not hits:
        return "no results"
    lines = ["found"]
    for number, hit in enumerate(hits[: shown.top_k], start=1):
        lines.append(f"{number} {hit.title} : {snippet(hit.text, query, shown.snippet_characters)}".rstrip())
    return "\n".join(lines)


def page(found: TitlePage | None) -> str:
    """The whole page."""
    if found is None:
        return "no page"
    return f"page {found.title} : {found.text}"


def snippet(text: str, query: str, characters: int) -> str:
    """The part of a text that has most of the query's words, in one line; the whole text where it fits."""
    plain = " ".join(text[:_SEARCHED].split())
    if len(plain) <= characters:
        return plain
    begin = _best_begin(plain, query, characters)
    part = plain[begin : begin + characters]
    if begin:
        part = part[part.find(" ") + 1 :]
    if begin + characters < len(plain):
        return cut(part + " ", len(part))
    return part


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
    if place <= furthest:
        return 0
    return text.rfind(" ", 0, place)
