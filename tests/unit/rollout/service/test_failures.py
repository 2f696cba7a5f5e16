"""Which episodes are too many to go on with, and whether another try may go well."""

from __future__ import annotations

import pytest

from megatron_empg.rollout.episode import Episode, LostPart
from megatron_empg.rollout.service.failures import EnginesLost, RolloutServiceError, refuse_errors


def played(sound: int, own: int, lost: int) -> list[Episode]:
    """So many that went well, failed by themselves, and had no engine left."""
    well = [Episode("q", 0, 0, outcome="success") for _ in range(sound)]
    failed = [Episode("q", 0, 0, error="OSError: the tool is gone") for _ in range(own)]
    without = [Episode("q", 0, 0, error="NoHealthyEngine: none", lost=LostPart.ENGINE) for _ in range(lost)]
    return [*well, *failed, *without]


@pytest.mark.parametrize(("sound", "own", "lost"), [(0, 0, 8), (2, 4, 2), (3, 0, 5)])
def test_errors_that_are_too_many_by_lost_engines_alone_are_an_accident(sound: int, own: int, lost: int) -> None:
    with pytest.raises(EnginesLost, match=r"more than limits\.max_error_share") as refused:
        refuse_errors(played(sound, own, lost), 0.5, "step 3")
    assert refused.value.accident


@pytest.mark.parametrize(("sound", "own", "lost"), [(0, 8, 0), (2, 5, 1), (0, 5, 3)])
def test_errors_that_are_too_many_by_themselves_are_none(sound: int, own: int, lost: int) -> None:
    with pytest.raises(RolloutServiceError, match=r"more than limits\.max_error_share") as refused:
        refuse_errors(played(sound, own, lost), 0.5, "step 3")
    assert not refused.value.accident


def test_a_few_errors_are_let_pass() -> None:
    refuse_errors(played(4, 2, 2), 0.5, "step 3")
