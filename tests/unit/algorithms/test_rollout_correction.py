import math

import pytest
import torch

from megatron_empg.algorithms.rollout_correction import (
    engine_gaps,
    episode_gaps,
)


def test_gaps_by_hand() -> None:
    actor = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    engine = torch.tensor([-1.5, -2.0, -2.0, -1.25])
    gaps = episode_gaps(actor, engine, [3, 0, 1])
    assert gaps.mean.tolist() == [0.5, 0.0, 0.25]
    assert gaps.max.tolist() == [1.0, 0.0, 0.25]
    assert gaps.not_finite.tolist() == [0.0, 0.0, 0.0]
    both, one = engine_gaps(gaps, torch.tensor([1, 1, -1]))[::-1]
    assert both == (1, 0.5, 1.0, 3, 0)
    assert one == (-1, 0.25, 0.25, 1, 0)


def test_no_episodes_are_no_fault() -> None:
    gaps = episode_gaps(torch.zeros(0), torch.zeros(0), [])
    assert engine_gaps(gaps, torch.empty(0, dtype=torch.long)) == []


@pytest.mark.parametrize("bad", [math.nan, -math.inf, -9999.0])
def test_what_is_no_number_exceeds_every_limit_and_is_counted(bad: float) -> None:
    gaps = episode_gaps(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, bad]), [1, 1])
    assert gaps.max.tolist() == [0.0, math.inf]
    assert gaps.mean.tolist() == [0.0, math.inf]
    assert gaps.not_finite.tolist() == [0.0, 1.0]
    actors = episode_gaps(torch.tensor([math.nan]), torch.tensor([-1.0]), [1])
    assert (actors.max.tolist(), actors.not_finite.tolist()) == ([math.inf], [0.0])
