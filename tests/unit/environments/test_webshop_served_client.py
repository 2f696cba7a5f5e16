"""Where the client of a WebShop site sends what it asks, a token among it; how often it asks."""

import time

import pytest

from megatron_empg.environments.webshop.errors import ShopServerError
from megatron_empg.environments.webshop.served_client import ShopClient, _Passing
from megatron_empg.environments.webshop.served_pages import Link
from megatron_empg.environments.webshop.served_world import ServedWorld
from megatron_empg.environments.webshop.world import Rewards


@pytest.mark.parametrize("address", ["http://shop.example/s1", "https://other.example/s1", "//other.example/s1"])
def test_a_link_to_another_site_or_scheme_is_not_followed(address, monkeypatch):
    monkeypatch.setattr(ShopClient, "_attempt", lambda *_: pytest.fail("it was asked"))
    client = ShopClient("https://shop.example")
    with pytest.raises(ShopServerError, match="leads to another site"):
        client.follow(Link(address, "get"))


def test_a_link_of_the_site_itself_is_followed(monkeypatch):
    monkeypatch.setattr(ShopClient, "_attempt", lambda self, method, where, form, seconds: ("page", where))
    client = ShopClient("https://shop.example")
    for address in ("https://shop.example/s1", "/s1"):
        assert client.follow(Link(address, "get")) == ("page", "https://shop.example/s1")


def test_every_scene_says_what_results_are_called(monkeypatch):
    page = '<form action="/s1" method="post"><input id="search_input" name="search_query"></form>'
    monkeypatch.setattr(ShopClient, "_attempt", lambda self, method, where, form, seconds: (page, where))
    world = ServedWorld("https://shop.example", 3, Rewards(), within=None, measured_as="WebShop, a running server")
    assert world.begin().info == {"measured_as": "WebShop, a running server"}
    assert world.act("search[lamp]").info == {"measured_as": "WebShop, a running server"}


FIRST_PAGE = '<form action="/s1" method="post"><input id="search_input" name="search_query"></form>'
BOUGHT = '<div id="reward">Your score<pre>{}</pre></div>'


def visit_that_is_answered(pages, monkeypatch):
    """A visit to a site whose pages are these, one after another."""
    left = iter(pages)
    monkeypatch.setattr(ShopClient, "_attempt", lambda self, method, where, form, seconds: (next(left), where))
    world = ServedWorld("https://shop.example", 3, Rewards(), within=None, measured_as="WebShop, a running server")
    world.begin()
    return world


@pytest.mark.parametrize("told", ["nan", "inf", "-inf", "5", "-1", "1.0001", "1e400", "", "much"])
def test_a_score_that_webshop_does_not_give_is_a_fault_of_the_site(told, monkeypatch):
    world = visit_that_is_answered([FIRST_PAGE, BOUGHT.format(told)], monkeypatch)
    with pytest.raises(ShopServerError, match=f"shows the score '{told}'; it must be a number from 0 to 1"):
        world.act("search[lamp]")


@pytest.mark.parametrize("told", ["0.0", "0.75", "1.0"])
def test_a_score_of_webshop_is_taken(told, monkeypatch):
    scene = visit_that_is_answered([FIRST_PAGE, BOUGHT.format(told)], monkeypatch).act("search[lamp]")
    assert (scene.done, scene.info["score"], scene.success) == (True, float(told), told == "1.0")


@pytest.mark.parametrize(
    "page",
    ["", '{"error": "busy"}', "<form><input name=user><input name=password></form>", "<div>" * 200_000],
    ids=["blank", "json", "sign-in", "nested"],
)
def test_a_page_that_is_none_of_webshops_is_a_fault_of_the_site(page, monkeypatch):
    world = visit_that_is_answered([FIRST_PAGE, page], monkeypatch)
    with pytest.raises(ShopServerError, match="a page that is none of WebShop's"):
        world.act("search[lamp]")


@pytest.mark.parametrize(
    ("seconds", "within", "said"),
    [
        (0.2, 0.1, "the only attempt that there was time for failed: busy"),
        (0.0, 0.5, r"\d+ attempts failed, the last one: busy"),
    ],
)
def test_a_site_is_said_to_have_been_asked_as_often_as_it_was(monkeypatch, seconds, within, said):
    def fails(*_):
        time.sleep(seconds)
        raise _Passing("busy")

    monkeypatch.setattr(ShopClient, "_attempt", fails)
    with pytest.raises(ShopServerError, match=said):
        ShopClient("https://shop.example", within).get("/s1")
