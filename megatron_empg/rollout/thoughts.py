"""A turn without its thought, as templates of thinking models leave it out of earlier turns.

Everything up to the last closing mark is thought, and so are the blanks behind it that the template takes away.
Of a turn in tokens, tokens are taken away; what stays is what was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

OPENING, CLOSING = "<think>", "</think>"
BLANKS = ("", "\n", " \n\t\r")
"""What templates take away behind a thought: nothing, newlines, or all blanks."""
_PROBE = ("before ", "why", "\n \n", "after")


@dataclass(frozen=True)
class ThoughtRule:
    """`blanks` are taken away behind a thought. `keeps_open`: a thought that was never closed, since its turn was
    cut, stays as it is; else all of it goes, from its opening mark on."""

    blanks: str = "\n"
    keeps_open: bool = False

    def cut(self, text: str, *, opened: bool = False) -> str:
        """The turn's text without its thought. `opened`: the template itself opened the thought."""
        start, end = self.span(text, opened=opened)
        return text[:start] + text[end:]

    def span(self, text: str, *, opened: bool) -> tuple[int, int]:
        """Which characters of a turn are thought, of which there may be none."""
        closed = text.rfind(CLOSING)
        if closed >= 0:
            rest = text[closed + len(CLOSING) :]
            return 0, len(text) - len(rest.lstrip(self.blanks) if self.blanks else rest)
        if self.keeps_open:
            return 0, 0
        if opened:
            return 0, len(text)
        at = text.find(OPENING)
        if at >= 0:
            return (at, len(text))
        return (0, 0)

    def cut_ids(self, ids: Sequence[int], spell: Callable[[Sequence[int]], str], *, opened: bool) -> list[int]:
        """The turn's tokens without those of its thought. `spell`: the text of tokens, their marks included.

        A token that holds the end of the thought and what follows it stays: nothing that was said is lost.
        """
        start, end = self.span(spell(ids), opened=opened)
        if start == end:
            return list(ids)
        before = _tokens_within(ids, start, spell)
        through = _tokens_within(ids, end, spell)
        return [*ids[:before], *ids[max(before, through) :]]


def opens_thought(frame: str) -> bool:
    """Whether what a template writes before a turn leaves a thought open."""
    return frame.rfind(OPENING) > frame.rfind(CLOSING)


def thought_probe() -> str:
    """A turn with a thought, in whose rendering `blanks_taken` sees what a template does with it."""
    before, thought, blanks, after = _PROBE
    return f"{before}{OPENING}{thought}{CLOSING}{blanks}{after}"


def blanks_taken(shown: str) -> str | None:
    """The blanks that a template takes away which makes `shown` of the `thought_probe`; None for another rule."""
    *_, blanks, after = _PROBE
    for taken in BLANKS:
        if shown == (blanks.lstrip(taken) if taken else blanks) + after:
            return taken
    return None


def _tokens_within(ids: Sequence[int], characters: int, spell: Callable[[Sequence[int]], str]) -> int:
    """How many of the first tokens say no more than the first `characters`."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(spell(ids[:middle])) <= characters:
            low = middle
        else:
            high = middle - 1
    return low
