"""Processes get GPUs of the caller's list, never others'."""

from typing import Any

import pytest
import torch

from megatron_empg.common.visible_gpus import visible_gpus
from megatron_empg.launch import local_parts as launch
from megatron_empg.launch.environment_variables import trainer_environment
from megatron_empg.launch.recipe_plan import plan_of
from megatron_empg.recipe import RecipeError
from tests.support.recipes import least


@pytest.mark.parametrize(
    ("given", "first", "count", "expected"),
    [
        (None, 2, 2, "2,3"),
        ("4,5,6,7", 0, 2, "4,5"),
        ("4,5,6,7", 2, 2, "6,7"),
        ("7, 3", 1, 1, "3"),
        ("GPU-8932f937,GPU-08ff9c2d", 1, 1, "GPU-08ff9c2d"),
        ("MIG-a/1/0,MIG-a/2/0", 0, 1, "MIG-a/1/0"),
    ],
)
def test_places_are_those_of_the_callers_list(given: str | None, first: int, count: int, expected: str) -> None:
    assert visible_gpus(first, count, {} if given is None else {"CUDA_VISIBLE_DEVICES": given}) == expected


@pytest.mark.parametrize("given", ["4,5", "", "-1", "NoDevFiles"])
def test_a_list_that_is_too_short_is_an_error(given: str) -> None:
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES is"):
        visible_gpus(1, 2, {"CUDA_VISIBLE_DEVICES": given})


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may use four GPUs."""

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)


def recipe(**engine: int) -> Any:
    return least(actor={"tensor_parallel": 2}, engines={"count": 1, "tensor_parallel": 2, **engine})


@pytest.mark.usefixtures("four_gpus")
def test_engines_come_after_the_trainer_in_the_callers_list() -> None:
    (engine,) = launch.engine_parts(recipe())
    assert engine.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in engine.environment
    assert "PYTORCH_ALLOC_CONF" not in engine.environment


@pytest.mark.usefixtures("four_gpus")
def test_without_training_the_engines_come_first() -> None:
    (engine,) = launch.engine_parts(recipe(), trains=False)
    assert engine.environment["CUDA_VISIBLE_DEVICES"] == "4,5"


@pytest.mark.usefixtures("four_gpus")
def test_trainer_ranks_have_their_gpus_and_their_variables() -> None:
    environment = launch.trainer_part(plan_of(recipe(), starts_services=False)).environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert environment["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.usefixtures("four_gpus")
def test_too_few_gpus_are_an_error_before_anything_starts() -> None:
    with pytest.raises(RecipeError, match="4 GPUs of this machine are ours to use; the recipe needs 6"):
        launch.check_machine(recipe(count=2))


def test_what_the_user_has_set_wins() -> None:
    given = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    assert trainer_environment(given) == {}
    assert set(trainer_environment({})) == {"CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF"}
