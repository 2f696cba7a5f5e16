"""Holm's correction beside its definition and beside a simulation."""

import random

import pytest

from megatron_empg.study.holm import holm


def by_definition(p_values: list[float]) -> list[float]:
    """The smallest level at which Holm's steps would reject each, found by trying levels."""
    found = []
    for wanted in range(len(p_values)):
        level = next(level / 1000 for level in range(1001) if wanted in rejected(p_values, level / 1000))
        found.append(level)
    return found


def rejected(p_values: list[float], level: float) -> set[int]:
    """From the smallest on: rejected while p times the number of those that are left is within the level."""
    gone: set[int] = set()
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index]):
        if p_values[index] * (len(p_values) - len(gone)) > level and level < 1:
            break
        gone.add(index)
    return gone


def test_an_example_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_it_is_the_smallest_level_that_rejects() -> None:
    chance = random.Random(1)
    for _ in range(20):
        p_values = [chance.random() ** 3 for _ in range(chance.randint(1, 6))]
        assert holm(p_values) == pytest.approx(by_definition(p_values), abs=1.1e-3)


def test_false_alarms_of_a_family_are_as_rare_as_one_alone() -> None:
    chance = random.Random(2)
    alarms = sum(min(holm([chance.random() for _ in range(8)])) < 0.05 for _ in range(4000))
    assert 0.035 < alarms / 4000 < 0.065
