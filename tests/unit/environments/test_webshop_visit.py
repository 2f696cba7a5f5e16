"""Pages and clicks of the shop, in the words of WebShop's text mode."""

import json
from dataclasses import replace

import pytest

from megatron_empg.environments.webshop.catalogue import Catalogue
from megatron_empg.environments.webshop.pages import SEPARATOR
from megatron_empg.environments.webshop.product import Instruction, Product
from megatron_empg.environments.webshop.shop import PageOptions, Visit
from megatron_empg.environments.webshop.store import ListingStore
from megatron_empg.environments.webshop.titles import WordTitles


def lamp(number):
    return Product(
        asin=f"B0LAMP{number:04d}",
        title=f"Brass Lamp {number}",
        description="It shines. ",
        bullets=("bright", " small "),
        category="garden",
        query="lamps",
        product_category="Home › Lighting › Lamps",
        prices=(10.0 + number,),
        options={"color": ("black", "pale  blue"), "size": ("small", "large", "features")},
        attributes=("easy to use",),
    )


@pytest.fixture
def catalogue():
    store = ListingStore()
    for number in range(23):
        store.add(lamp(number))
    store.describe("B0LAMP0003", None, Instruction("i need a lamp", ("bright",)))
    return Catalogue(store, human=False)


@pytest.fixture
def visit(catalogue):
    goal = next(goal for goal in catalogue.goals if [value for _, value in goal.options] == ["black", "large"])
    return Visit(catalogue, goal, WordTitles())


def after(visit, *commands):
    for command in commands:
        visit.act(command)
    return visit.page


def test_a_visit_begins_on_the_search_page(visit):
    assert visit.page.published("buy a lamp") == "WebShop [SEP] Instruction: [SEP] buy a lamp [SEP] Search"
    assert visit.page.choices == ("search[<your query>]",)
    assert visit.page.clickables == ("search",)


def test_results_are_ten_per_page(visit):
    page = after(visit, "search[Lamp 7]")
    parts = page.text.split(SEPARATOR)
    assert parts[:6] == [
        "Back to Search",
        "Page 1 (Total results: 23)",
        "Next >",
        "B0LAMP0007",
        "Brass Lamp 7",
        "$17.0",
    ]
    assert len(parts) == 3 + 3 * 10
    assert page.choices[:3] == ("click[back to search]", "click[next >]", "click[b0lamp0007]")
    page = after(visit, "click[next >]", "click[next >]")
    parts = page.text.split(SEPARATOR)
    assert parts[:4] == ["Back to Search", "Page 3 (Total results: 23)", "< Prev", "Next >"]
    assert len(parts) == 4 + 3 * 3
    page = after(visit, "click[next >]")
    assert page.text == "Back to Search [SEP] Page 4 (Total results: 23) [SEP] < Prev [SEP] Next >"
    page = after(visit, "click[< prev]", "click[< prev]", "click[< prev]")
    assert page.texts[1] == "Page 1 (Total results: 23)"


def test_a_page_may_have_fewer_results(catalogue):
    visit = Visit(catalogue, catalogue.goals[0], WordTitles(), PageOptions(results=2))
    first = [text for text in after(visit, "search[lamp]").texts if text.startswith("B0LAMP")]
    second = [text for text in after(visit, "click[next >]").texts if text.startswith("B0LAMP")]
    assert (first, second) == ([lamp(0).asin, lamp(1).asin], [lamp(2).asin, lamp(3).asin])
    assert visit.page.clickables[-2:] == (lamp(2).asin.lower(), lamp(3).asin.lower())


def test_nothing_found_is_a_page_too(visit):
    assert after(visit, "search[xyzzy]").texts == ("Back to Search", "Page 1 (Total results: 0)", "Next >")
    assert after(visit, "search[ ]").texts[1] == "Page 1 (Total results: 0)"
    assert after(visit, "search[the of]").texts[1] == "Page 1 (Total results: 0)"


def test_a_product_shows_its_options_price_and_sub_pages(visit):
    page = after(visit, "search[lamp 3]", "click[B0LAMP0003]")
    assert page.published("buy a lamp") == (
        "Instruction: [SEP] buy a lamp [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] black [SEP] pale  blue "
        "[SEP] size [SEP] small [SEP] large [SEP] features [SEP] Brass Lamp 3 [SEP] Price: $13.0 [SEP] "
        "Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    assert page.clickables == (
        "back to search",
        "< prev",
        "description",
        "features",
        "reviews",
        "buy now",
        "black",
        "pale  blue",
        "small",
        "large",
    )
    assert after(visit, "click[description]").text == "Back to Search [SEP] < Prev [SEP] It shines."
    assert (
        after(visit, "click[< prev]", "click[features]").text
        == "Back to Search [SEP] < Prev [SEP] bright [SEP] small"
    )
    assert after(visit, "click[< prev]", "click[reviews]").text == "Back to Search [SEP] < Prev"
    assert after(visit, "click[< prev]").text.endswith("Buy Now")
    assert after(visit, "click[attributes]").text.endswith("Buy Now")


def test_attributes_have_a_page_where_asked_for(catalogue):
    visit = Visit(catalogue, catalogue.goals[0], WordTitles(), PageOptions(attributes=True))
    page = after(visit, "search[lamp]", f"click[{lamp(0).asin}]", "click[attributes]")
    assert page.text == (
        "Back to Search [SEP] < Prev [SEP] easy to use [SEP] garden [SEP] lamps [SEP] Home › Lighting › Lamps"
    )


def test_what_was_chosen_is_shown_where_asked_for(catalogue):
    plain = Visit(catalogue, catalogue.goals[0], WordTitles())
    rich = Visit(catalogue, catalogue.goals[0], WordTitles(), PageOptions(chosen=True))
    opening = ("search[lamp 3]", "click[b0lamp0003]")
    assert after(rich, *opening) == after(plain, *opening)
    page, chosen = after(plain, "click[large]", "click[black]"), after(rich, "click[large]", "click[black]")
    assert chosen.text == f"You have clicked large. [SEP] You have clicked black. [SEP] {page.text}"
    assert chosen.clickables == page.clickables
    assert after(rich, "click[small]").texts[:2] == ("You have clicked small.", "You have clicked black.")
    assert after(rich, "click[< prev]", "click[b0lamp0003]").texts[0] == "Back to Search"


def test_options_are_chosen_again_and_kept_on_sub_pages(visit):
    after(visit, "search[lamp 3]", "click[b0lamp0003]", "click[black]", "click[black]")
    assert visit.place.chosen == {"color": "black"}
    after(visit, "click[pale blue]", "click[large]", "click[description]", "click[< prev]")
    assert visit.place.chosen == {"color": "pale  blue", "size": "large"}
    after(visit, "click[< prev]")
    assert visit.place.chosen == {}
    assert visit.place.name == "results"


def test_an_option_called_like_a_button_is_the_button_as_in_webshop(visit):
    assert after(visit, "search[lamp 3]", "click[b0lamp0003]", "click[features]").text.endswith(
        "bright [SEP] small"
    )


def test_the_state_knows_what_was_chosen_where_the_page_does_not(visit):
    page = after(visit, "search[lamp 3]", "click[b0lamp0003]")
    state, text = visit.place.state, page.text
    page = after(visit, "click[black]")
    assert page.text == text
    assert visit.place.state != state
    assert json.loads(visit.place.state)[-1] == [["color", "black"]]


def test_a_purchase_ends_the_visit_with_its_score(visit):
    page = after(visit, "search[lamp 3]", "click[b0lamp0003]", "click[black]", "click[large]", "click[buy now]")
    assert visit.score.value == 1.0
    assert page.texts[0] == "Thank you for shopping with us!"
    after(visit, "search[lamp]")
    assert visit.page is page


def test_a_purchase_without_the_options_is_worth_less(visit):
    after(visit, "search[lamp 3]", "click[b0lamp0003]", "click[black]", "click[buy now]")
    assert visit.score.value == 3 / 4


@pytest.mark.parametrize(
    "command",
    [
        "",
        "lamp",
        "click[buy now]",
        "click[b0lamp0003]",
        "click[search]",
        "click[next >]",
        "buy[lamp]",
        "click[]",
        "search[]",
        "search[[lamp]",
        "click[\ud83d]",
        "click[" + "x" * 100_000 + "]",
        "[" * 100_000,
        "東京",
    ],
)
def test_what_is_no_command_of_the_page_changes_nothing(visit, command):
    page, state = visit.page, visit.place.state
    after(visit, command)
    assert (visit.page, visit.place.state) == (page, state)


@pytest.mark.parametrize(
    "query", ["lamp " * 20_000, "x" * 100_000, "\ud83d\udc00 lamp", "東京 lamp", "<r> lamp", "a b] lamp"]
)
def test_any_search_is_answered_and_its_state_has_a_short_name(visit, query):
    page = after(visit, f"search[{query}]")
    assert page.texts[0] == "Back to Search"
    assert len(visit.place.state) < 1000


def test_a_search_is_possible_from_any_page(visit):
    after(visit, "search[lamp 3]", "click[b0lamp0003]", "click[black]", "click[description]")
    assert after(visit, "search[lamp 5]").texts[3] == "B0LAMP0005"
    assert visit.place.chosen == {}
    assert after(visit, "click[back to search]").search_bar


def test_products_whose_asin_is_not_in_capitals_are_opened_and_bought():
    store = ListingStore()
    for number, asin in enumerate(("b0lamp0001", "B0lamp0002")):
        store.add(replace(lamp(number), asin=asin))
        store.describe(asin, None, Instruction("i need a lamp", ("bright",)))
    catalogue = Catalogue(store, human=False)
    for number, asin in enumerate(("b0lamp0001", "B0lamp0002")):
        visit = Visit(catalogue, catalogue.goals[0], WordTitles())
        page = after(visit, "search[brass lamp]", f"click[{asin.lower()}]")
        assert f"Brass Lamp {number}" in page.texts
        after(visit, "click[description]", "click[< prev]", "click[buy now]")
        assert visit.score is not None
