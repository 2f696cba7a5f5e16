"""A server that a recipe names must be there before a run starts."""

import socket
from pathlib import Path

import pytest

from megatron_empg.launch import local_parts as launch
from megatron_empg.launch.local_parts import check_machine
from megatron_empg.launch.ports import free_port
from megatron_empg.launch.service_check import check_services
from megatron_empg.recipe import Recipe, RecipeError, load_recipe

QUICKSTART = Path(__file__).resolve().parents[3] / "recipes/quickstart.yaml"


def recipe(url: str) -> Recipe:
    return load_recipe(QUICKSTART, [f"environment.settings.search_url={url}"])


def test_a_server_that_is_there_is_asked_nothing_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_services(recipe(f"http://127.0.0.1:{server.getsockname()[1]}/base"))


def test_a_server_that_is_not_there_is_named_with_its_key_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "first_engine_gpu", lambda *_, **__: None)  # another check's concern
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RecipeError) as caught:
        check_machine(recipe(url))
    message = str(caught.value)
    assert message.startswith(f"environment.settings.search_url is {url}, where nobody answers (")
    assert message.endswith("start that server first, or correct the address")


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_fault_too(url: str) -> None:
    with pytest.raises(RecipeError, match=r"environment\.settings"):
        check_services(recipe(url))


def test_without_a_server_there_is_nothing_to_ask() -> None:
    check_services(load_recipe(QUICKSTART))
