"""Which episodes the page shows, and how strongly it tints their turns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""An episode, or a turn of one, as it was logged."""


def chosen(first: Sequence[Record], last: Sequence[Record]) -> dict[str, Record]:
    """One that went right and one that went wrong of the last logged step, and one of the first, by heading. The
    first of them has none and is shown open."""
    right, wrong = longest(last, success=True), longest(last, success=False)
    found = {"": right or wrong}
    if right:
        found["Of the same step: one that failed"] = wrong
    if right or wrong:
        found["For comparison: one of the first logged step"] = longest(first, False) or longest(first, True)
    return {heading: episode for heading, episode in found.items() if episode}


def longest(episodes: Sequence[Record], success: bool) -> Record | None:
    """The longest episode with reward above 0, or without."""
    fitting = []
    for episode in episodes:
        played = isinstance(episode.get("turns"), list) and episode["turns"]
        if played and ((episode.get("reward") or 0) > 0) == success:
            fitting.append(episode)
    return max(fitting, key=lambda episode: len(episode["turns"]), default=None)


def reach(episode: Record) -> float:
    """The largest size of an advantage in the episode, which has the longest bar."""
    advantages = [part.get("advantage") or 0.0 for part in (episode, *episode["turns"])]
    return max(map(abs, advantages)) or 1.0


def tints(turns: Sequence[Record]) -> list[float]:
    """From 0 for a sure turn to 1: the batch's H_norm where there is one, else the entropy's place within the
    episode.

    As the square root: one very unsure step in the batch leaves all others small.
    """
    known = [turn["entropy"] for turn in turns if turn.get("entropy") is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    found = []
    for turn in turns:
        tint = 0.0
        if turn.get("h_norm") is not None:
            tint = turn["h_norm"]
        elif turn.get("entropy") is not None and high > low:
            tint = (turn["entropy"] - low) / (high - low)
        found.append(math.sqrt(min(1.0, max(0.0, tint))))
    return found
