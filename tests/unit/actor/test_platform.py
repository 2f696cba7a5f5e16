"""The device of a rank."""

import pytest
import torch

from megatron_empg.actor import platform


@pytest.mark.parametrize(("local_rank", "visible", "chosen"), [("3", 8, [3]), ("3", 1, [0]), (None, 8, [])])
def test_a_rank_takes_the_device_of_its_place_on_the_node(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, visible: int, chosen: list[int]
) -> None:
    """Or the only one that its launcher shows it; without a launcher the device stays as it is."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    platform.choose_device()
    assert taken == chosen
