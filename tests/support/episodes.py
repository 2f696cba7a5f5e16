"""Episodes for tests, as a rollout hands them over."""

from __future__ import annotations

from megatron_empg.environments.base import Task
from megatron_empg.rollout.client import VersionSpan
from megatron_empg.rollout.episode import Episode, Turn
from megatron_empg.run.timeline import Span

BEGAN = 1000.0
"""When the batch began, by the clock of the service."""


def tasks(count: int) -> list[Task]:
    return [Task(f"task{i}", [{"role": "user", "content": f"question {i}"}], {}) for i in range(count)]


def episode(group: int, sample: int, reward: float | None, *, version: int = 4) -> Episode:
    """Two turns of 2 and 3 own tokens, of which the first earns a quarter of the reward; a reward of None stands
    for an episode that ended in an error."""
    early, late = 0.25 * (reward or 0.0), 0.75 * (reward or 0.0)
    first, second = [VersionSpan(version, 0, 2)], [VersionSpan(version, 0, 3)]
    turns = [
        Turn(3, 5, "search x", "stop", first, "found x", sample == 1, reward=early, anchor=group),
        Turn(9, 12, "answer y", "length", second, reward=late, anchor=-7),
    ]
    outcome = "error" if reward is None else ("success" if reward > 0 else "truncated")
    tokens = [100 * group + 10 * sample + i % 10 for i in range(12)]
    error = "EngineError: gone" if reward is None else None
    return Episode(
        f"task{group}",
        group,
        sample,
        3,
        tokens,
        turns,
        [-0.1, -0.2, -0.3, -0.4, -0.5],
        reward or 0.0,
        outcome,
        error,
        gold=[100 + group, 7],
    )


def timed_episode(name: str, seconds: float, outcome: str = "success") -> Episode:
    """It begins a second after the batch; half of its time is one turn, a quarter its environment."""
    began, half = BEGAN + 1, seconds / 2
    turn = Turn(3, 5, "text", "stop", [VersionSpan(4, 0, 2)], anchor=1)
    turn.generation = Span(began + half / 2, began + 1.5 * half)
    turn.environment = Span(began + 1.5 * half, began + 1.75 * half)
    played = Episode(name, 0, 0, 3, [0] * 5, [turn], [-0.1, -0.2], 1.0, outcome)  # type: ignore[arg-type]
    played.engine = "http://engine:1"
    played.opening = Span(began, began + half / 4)
    played.whole = Span(began, began + seconds)
    return played
