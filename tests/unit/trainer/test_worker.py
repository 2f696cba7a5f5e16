"""A trainer rank's process knows which rank it is, or says who should have told it."""

import pytest

from megatron_empg.trainer.worker import NoRankError, own_rank


def test_the_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert own_rank() == 3


@pytest.mark.parametrize("value", [None, "", "x", "-1"])
def test_a_process_without_a_rank_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if value is not None:
        monkeypatch.setenv("RANK", value)
    with pytest.raises(
        NoRankError, match=r"RANK is '.*', not a number: torchrun sets it; start a run by `empg train"
    ):
        own_rank()
