"""The reward of a purchase. Numbers of the cases named published are those of WebShop's own tests
(princeton-nlp/WebShop, tests/web-agent-site/engine/test_goal.py and test_normalize.py, at commit 64fa2a5); the
spaCy model that its title scores come from is replaced by what it said there."""

import importlib.machinery
import sys
import types

import pytest

from megatron_empg.environments.webshop.colours import normal_colour
from megatron_empg.environments.webshop.product import Goal, GoalOption, Product
from megatron_empg.environments.webshop.reward import (
    matched_attributes,
    matched_options,
    score_of,
    type_match,
)
from megatron_empg.environments.webshop.titles import (
    SpacyModelError,
    SpacyTitles,
    WordTitles,
    require_model,
    share_of,
)

SNEAKERS = "Mens D.O.N. Issue 2 Gca Basketball Sneakers Shoes Casual - Off White"
OTHER_SNEAKERS = (
    "PEAK High Top Mens Basketball Shoes Lou Williams Streetball Master Breathable Non Slip Outdoor Sneakers"
)
CORD = (
    "Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Bar 2.1 Channel 4K Ultra HD Soundbar Home Theater "
    "System Subwoofer"
)
SHORT_CORD = "Saireed UL Listed 2 Prong Power Cord for JBL Bar 3.1 Bar 2.1 Channel 4K Ultra HD Soundbar"
OTHER_CORD = (
    "BRST AC Power Cord Outlet Socket Cable Plug Lead for Panasonic SC-HT830V DVD/VCR Combo Home Theater System"
)
KNOB = "Rusticware 921ORB Kitchen and Bath Cabinet Knob"
TWEEZERS = (
    "Minkissy 2pcs Stainless Steel Eyebrow Tweezers Blackhead Acne Remover Portable Makeup Tweezers (Silver)"
)
OILS = ("tea tree", "essential oils", "natural ingredients")
LEMONS = "This shampoo has essential oils and smells like lemons"
BEST = "Best shampoo on the market, made with natural ingredients"


class Said:
    """Titles whose scores are what somebody says."""

    name = "said"
    published = False

    def __init__(self, score):
        self._score = score

    def score(self, bought, wanted):
        return self._score


def product(**fields):
    plain = {
        "asin": "B000000000",
        "title": "",
        "description": "",
        "bullets": (),
        "category": "beauty",
        "query": "query 1",
        "product_category": "a › b › c",
        "prices": (35.0,),
        "options": {},
        "attributes": (),
    }
    return Product(**{**plain, **fields})


def goal(**fields):
    plain = {
        "number": 0,
        "asin": "B000000000",
        "category": "beauty",
        "query": "query 1",
        "title": SNEAKERS,
        "product_category": "a › b › c",
        "text": "buy it",
        "attributes": OILS,
        "options": (GoalOption("color", "grey"), GoalOption("size", "XL")),
        "price_limit": 40.0,
    }
    return Goal(**{**plain, **fields})


def unnamed(*values):
    return [GoalOption("", value) for value in values]


@pytest.mark.parametrize(
    ("attributes", "pages", "matched"),
    [
        (("tea tree", "essential oil", "natural ingredients"), {}, 3),
        (("essential oil", "natural ingredients"), {}, 2),
        ((), {"bullets": (LEMONS,), "description": BEST}, 2),
        (
            ("tea bag", "earl gray", "lipton"),
            {
                "title": "English tea for breakfast",
                "bullets": ("Soothing aroma", "Calming, great feeling"),
                "description": "Best tea made by Lipton, great to pair with breakfast",
            },
            0,
        ),
    ],
)
def test_attributes_match_as_in_the_published_cases(attributes, pages, matched):
    assert matched_attributes(product(attributes=attributes, **pages), OILS) == matched


@pytest.mark.parametrize(
    ("wanted", "chosen", "matched"),
    [
        (("grey", "XL", "pack of 12"), ("pack of 12", "grey", "XL"), 3),
        (("grey", "XL", "pack of 12"), ("pack of 12", "blue", "XL"), 2),
        (("cool powder snow", "XL", "pack of 12"), ("pack of 12", "powder snow", "XL"), 3),
        ((), ("goal 1", "goal 2"), 0),
        (("goal 1", "goal 2"), (), 0),
    ],
)
def test_options_match_as_in_the_published_cases(wanted, chosen, matched):
    assert matched_options(chosen, unnamed(*wanted)) == matched


@pytest.mark.parametrize(
    ("query", "path", "by_query", "by_category"),
    [
        ("query 1", "a › b › c", True, True),
        ("query 2", "a › b › c", False, True),
        ("query 2", "b › c › a", False, True),
        ("query 2", "d › e › f", False, False),
        ("query 2", "a › d › b", False, True),
        ("query 2", "a › a › b", False, True),
        ("query 2", "a › a › d", False, False),
    ],
)
def test_types_match_as_in_the_published_cases(query, path, by_query, by_category):
    found = type_match(product(query=query, product_category=path), goal(), Said(1.0))
    assert (found.query, found.category) == (by_query, by_category)
    assert found.factor == 1.0


def test_the_published_purchases_are_worth_what_they_were():
    """1, then with other attributes 2/3, with a third option 4/7, and of another type the half of that."""
    whole = ("tea tree", "essential oil", "natural ingredients")
    chosen = {"color": "grey", "size": "XL"}
    first = score_of(product(title="", attributes=whole), goal(), 35, chosen, Said(1.0))
    assert first.value == 1
    # There the bullets are one text, taken for a list: its letters are joined by blanks, so it matches nothing.
    found_on_pages = product(bullets=tuple(LEMONS), description=BEST)
    assert score_of(found_on_pages, goal(), 35, chosen, Said(1.0)).value == pytest.approx(2 / 3)
    three = goal(options=(*goal().options, GoalOption("amount", "pack of 12")))
    assert score_of(found_on_pages, three, 35, chosen, Said(1.0)).value == pytest.approx(0.5714, abs=1e-4)
    cord = product(
        title=OTHER_CORD, bullets=tuple(LEMONS), description=BEST, query="query 2", product_category="a › d › e"
    )
    wanted = goal(title=SHORT_CORD, options=three.options)
    assert score_of(cord, wanted, 35, chosen, Said(0.15)).value == pytest.approx(0.2857, abs=1e-4)


def test_what_costs_more_than_the_limit_loses_a_part():
    whole, chosen = product(attributes=OILS), {"color": "grey", "size": "XL"}
    assert score_of(whole, goal(), 40.0, chosen, Said(1.0)).value == 1.0
    dear = score_of(whole, goal(), 40.01, chosen, Said(1.0))
    assert dear.value == 5 / 6
    assert dear.info == {
        "score": 5 / 6,
        "r_type": 1.0,
        "title_score": 1.0,
        "r_att": 1.0,
        "r_price": False,
        "r_option": 1.0,
    }


@pytest.mark.parametrize(("title", "factor"), [(0.21, 1.0), (0.2, 0.5), (0.1, 0.5), (0.09, 0.1), (0.0, 0.0)])
def test_a_title_alone_decides_on_the_type_of_what_is_found_elsewhere(title, factor):
    elsewhere = product(query="query 2", product_category="d › e › f")
    assert type_match(elsewhere, goal(), Said(title)).factor == factor


def test_a_title_unlike_the_goals_costs_even_where_the_category_is_right():
    assert type_match(product(), goal(), Said(0.05)).factor == 0.1
    assert type_match(product(), goal(), Said(0.0)).factor == 0.0


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("", ""),
        ("black forest", "black"),
        ("violet lavender", "lavender"),
        ("steelivy fuchsia", "fuchsia"),
        ("123alabaster", "alabaster"),
        ("webshop", "webshop"),
    ],
)
def test_colours_are_normalised_as_in_the_published_cases(text, colour):
    assert normal_colour(text) == colour


def test_an_option_with_a_name_is_compared_by_both():
    """So does WebShop with goals that it makes itself, whose options have names."""
    assert matched_options(["navy blue"], [GoalOption("color", "navy blue")]) == 1
    assert matched_options(["green"], [GoalOption("color", "dark green")]) == 1
    assert matched_options(["green"], unnamed("dark green")) == 0
    assert matched_options(["8 wide"], [GoalOption("size", "8")]) == 0


def test_the_share_of_nouns_counts_repeated_ones_below_alone():
    assert share_of(["bar", "cord"], ["bar", "bar", "cord", "system"]) == 0.5
    assert share_of(["bar"], []) == 0.2


@pytest.mark.parametrize(
    ("wanted", "bought", "published", "substitute"),
    [
        (SNEAKERS, OTHER_SNEAKERS, 0.333, 4 / 9),
        (CORD, OTHER_CORD, 0.3, 5 / 18),
        (SHORT_CORD, OTHER_CORD, 0.15, 2 / 14),
        (KNOB, TWEEZERS, 0.0, 0.0),
    ],
)
def test_the_substitute_is_near_the_published_title_scores_and_not_equal(wanted, bought, published, substitute):
    score = WordTitles().score(bought, wanted)
    assert score == pytest.approx(substitute)
    assert score == pytest.approx(published, abs=0.12)


class FakeToken:
    def __init__(self, text):
        self.text = text
        self.pos_ = "PROPN" if text.istitle() else "NOUN" if text.endswith("e") else "ADJ"


@pytest.fixture
def fake_spacy(monkeypatch, tmp_path):
    """A spaCy that calls words with a capital names, and others nouns that end in e."""
    loads = []

    def load(model):
        loads.append(model)
        return lambda title: [FakeToken(word) for word in title.split()]

    fake = types.ModuleType("spacy")
    fake.__spec__ = importlib.machinery.ModuleSpec("spacy", None)
    fake.load = load
    monkeypatch.setitem(sys.modules, "spacy", fake)
    (tmp_path / "config.cfg").touch()
    return str(tmp_path), loads


def test_a_spacy_model_s_nouns_and_names_are_what_counts(fake_spacy):
    model, loads = fake_spacy
    titles = SpacyTitles(model)
    assert loads == []
    assert titles.score("Brass table lamp", "Brass table shade bright") == pytest.approx(2 / 3)
    assert titles.score("lamp", "bright") == 0.2
    assert loads == [model]
    assert titles.published


def test_a_spacy_model_that_cannot_be_loaded_is_named(fake_spacy, monkeypatch):
    model, _ = fake_spacy

    def load(_):
        raise OSError("[E053] Could not read config file\nand more")

    monkeypatch.setattr(sys.modules["spacy"], "load", load)
    with pytest.raises(SpacyModelError, match=r"cannot be loaded \(\[E053\] Could not read config file\)"):
        SpacyTitles(model).score("a", "b")


def test_a_spacy_model_that_is_not_there_is_named():
    with pytest.raises(SpacyModelError, match=r"spacy_model.*no_such_model"):
        SpacyTitles("no_such_model").score("a title", "a title")


@pytest.mark.parametrize("place", ["a file", "a folder"])
def test_a_spacy_model_that_is_any_file_or_folder_is_refused_at_once(fake_spacy, tmp_path, place):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch() if place == "a file" else elsewhere.mkdir()
    with pytest.raises(SpacyModelError, match=r"neither an installed package nor a folder with a config\.cfg"):
        require_model(str(elsewhere))
    require_model(fake_spacy[0])
