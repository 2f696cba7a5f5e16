"""An episode as HTML: each step's own text tinted by its entropy, beside what EMPG made of it."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

LONG_OBSERVATION = 420


def choose(episodes: Sequence[Mapping[str, Any]], success: bool) -> Mapping[str, Any] | None:
    """The longest episode with reward above 0, or without."""
    played = [e for e in episodes if e.get("turns") and isinstance(e["turns"], list)]
    fitting = [e for e in played if ((e.get("reward") or 0) > 0) == success]
    return max(fitting, key=lambda episode: len(episode["turns"]), default=None)


def episode_html(episode: Mapping[str, Any]) -> str:
    """The whole episode: question, turns, outcome."""
    turns = list(episode.get("turns", ()))
    tints = _tints(turns)
    largest = max((abs(turn["advantage"]) for turn in turns if turn.get("advantage") is not None), default=0.0)
    advantage = episode.get("advantage")
    facts = [f"training step {episode.get('step', '?')}", str(episode.get("task_id", ""))]
    facts += [f"outcome: {episode.get('outcome', 'unknown')}", f"reward {episode.get('reward', '?')}"]
    facts += [f"trajectory advantage {advantage:+.3f}"] if advantage is not None else []
    body = "".join(
        _turn(number, turn, tint, largest, advantage)
        for number, (turn, tint) in enumerate(zip(turns, tints, strict=True), 1)
    )
    return (
        '<div class="episode">'
        f'<p class="question">{_text(episode.get("question", ""))}</p>'
        f'<p class="facts">{" · ".join(_text(fact) for fact in facts if fact)}</p>{body}</div>'
    )


def _tints(turns: Sequence[Mapping[str, Any]]) -> list[float]:
    """0 to 1: the batch's H_norm where there is one, else the entropy's place within the episode.

    As the square root: one very unsure step in the batch leaves all others small.
    """
    entropies = [turn.get("entropy") for turn in turns]
    known = [value for value in entropies if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    tints = []
    for turn, value in zip(turns, entropies, strict=True):
        if turn.get("h_norm") is not None:
            tints.append(float(turn["h_norm"]))
        else:
            tints.append((value - low) / (high - low) if value is not None and high > low else 0.0)
    return [math.sqrt(max(0.0, tint)) for tint in tints]


def _turn(number: int, turn: Mapping[str, Any], tint: float, largest: float, trajectory: float | None) -> str:
    chips = [
        _chip("H", turn.get("entropy"), "{:.3f}", "step entropy: mean over the step's own tokens, nats"),
        _chip("H_norm", turn.get("h_norm"), "{:.2f}", "entropy, min-max normalised over the batch"),
        _chip("g", turn.get("g"), "{:.2f}", "scale of the trajectory advantage"),
        _chip("bonus", turn.get("bonus"), "{:+.3f}", "future clarity: zeta times f of the next step's entropy"),
        _chip("tokens", _count(turn.get("tokens")), "{}", "the step's own tokens"),
    ]
    observation = str(turn.get("observation") or "")
    seen = ""
    if observation:
        seen = f'<div class="observation"><b>observation</b>{_folded(observation)}</div>'
    return (
        f'<div class="turn" style="--h:{min(1.0, max(0.0, tint)):.3f}"><div class="number">{number}</div>'
        f'<div class="said"><pre>{_text(turn.get("text", ""))}</pre>{seen}</div>'
        f'<div class="numbers">{_bar(turn.get("advantage"), largest, trajectory)}'
        f"<dl>{''.join(chips)}</dl></div></div>"
    )


def _bar(advantage: float | None, largest: float, trajectory: float | None) -> str:
    """The final advantage as a bar from the middle, with a tick at the trajectory's."""
    if advantage is None:
        return ""
    reach = max(largest, abs(trajectory or 0.0)) or 1.0
    share = 50 * advantage / reach
    left, width = (50.0, share) if share >= 0 else (50 + share, -share)
    sign = "good" if advantage >= 0 else "bad"
    tick = ""
    if trajectory is not None:
        tick = f'<s style="left:{50 + 50 * trajectory / reach:.1f}%" title="trajectory advantage"></s>'
    return (
        f'<div class="final"><span>final advantage</span><b>{advantage:+.3f}</b></div>'
        f'<div class="bar"><i class="{sign}" style="left:{left:.1f}%;width:{width:.1f}%"></i>{tick}</div>'
    )


def _chip(name: str, value: Any, form: str, meaning: str) -> str:
    if value is None:
        return ""
    return f'<div title="{_text(meaning)}"><dt>{name}</dt><dd>{form.format(value)}</dd></div>'


def _count(tokens: Any) -> int | None:
    return len(tokens) if isinstance(tokens, list | tuple) else tokens


def _folded(text: str) -> str:
    if len(text) <= LONG_OBSERVATION:
        return f"<pre>{_text(text)}</pre>"
    head = text[:LONG_OBSERVATION].rstrip()
    return f"<details><summary><pre>{_text(head)} …</pre></summary><pre>{_text(text[len(head) :])}</pre></details>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
