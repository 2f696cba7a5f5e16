"""What a purchase is worth: WebShop's formula (arXiv 2207.01206; web_agent_site/engine/goal.py).

type factor x (matched attributes + matched options + [price within the limit]) / (attributes + options + 1)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from megatron_empg.environments.webshop.colours import COLOURS, normal_colour
from megatron_empg.environments.webshop.product import Goal, GoalOption, Product
from megatron_empg.environments.webshop.titles import Titles
from megatron_empg.environments.webshop.token_ratio import token_set_ratio

ALIKE = 85
"""Ratio of two texts above which they mean the same."""
LEAST_SHARED = 2
"""Levels of the category path that make two products of one kind."""
ARROW = "›"
_LITTLE_ALIKE, _HARDLY_ALIKE = 0.2, 0.1


@dataclass(frozen=True)
class TypeMatch:
    """How far the bought product is of the wanted kind, and why."""

    factor: float
    query: bool
    category: bool
    title: float


@dataclass(frozen=True)
class PurchaseScore:
    """`value`, from 0 to 1, and what it is made of: how many attributes and options match, of how many."""

    value: float
    type: TypeMatch
    attributes: int
    of_attributes: int
    options: int
    of_options: int
    price: bool

    @property
    def info(self) -> dict[str, float | str | bool]:
        """The parts, as an episode's record has them."""
        found: dict[str, float | str | bool] = {
            "score": self.value,
            "r_type": self.type.factor,
            "title_score": self.type.title,
            "r_att": self.attributes / self.of_attributes,
            "r_price": self.price,
        }
        if self.of_options:
            found["r_option"] = self.options / self.of_options
        return found


def score_of(
    product: Product, goal: Goal, price: float, chosen: Mapping[str, str], titles: Titles
) -> PurchaseScore:
    """What it is worth to have bought `product` for `price`, with the options that were `chosen`."""
    kind = type_match(product, goal, titles)
    attributes = matched_attributes(product, goal.attributes)
    options = matched_options(chosen.values(), goal.options)
    cheap = price <= goal.price_limit
    asked = len(goal.attributes) + len(goal.options) + 1
    value = (attributes + options + cheap) / asked * kind.factor
    return PurchaseScore(value, kind, attributes, len(goal.attributes), options, len(goal.options), cheap)


def type_match(product: Product, goal: Goal, titles: Titles) -> TypeMatch:
    """Whether the product is of the goal's kind: by the query that finds it, its category or its title."""
    query = product.query == goal.query
    shared = _levels(product.product_category) & _levels(goal.product_category)
    category = len(shared) >= LEAST_SHARED
    title = titles.score(product.title, goal.title)
    factor = 0.5
    if query or category or title > _LITTLE_ALIKE:
        factor = 1.0
    if title < _HARDLY_ALIKE:
        factor = 0.1
    if title == 0:
        factor = 0.0
    return TypeMatch(factor, query, category, title)


def matched_attributes(product: Product, wanted: Collection[str]) -> int:
    """How many of the wanted attributes the product has: as one of its own, or as words of its pages."""
    return sum(_has(product, attribute) for attribute in wanted)


def matched_options(chosen: Collection[str], wanted: Collection[GoalOption]) -> int:
    """How many of the wanted options were chosen."""
    made = [normal_colour(value) for value in chosen]
    found = 0
    for option in wanted:
        text = comparable(option)
        found += any(token_set_ratio(value, text) > ALIKE for value in made)
    return found


def comparable(option: GoalOption) -> str:
    """What is compared of a wanted option: the colour that it is about, or its words.

    Of an option with a name WebShop compares the name too, and finds a colour only where one stands alone.
    """
    if not option.name:
        return normal_colour(option.value)
    for colour in COLOURS:
        if colour in option:
            return colour
    return f"{option.name} {option.value}"


def _has(product: Product, attribute: str) -> bool:
    if attribute in product.attributes:  # what most often decides is asked first; the ratio would say the same
        return True
    if any(token_set_ratio(own, attribute) > ALIKE for own in product.attributes):
        return True
    pages = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in page.lower() for page in pages)


def _levels(path: str) -> set[str]:
    return {level.strip() for level in path.split(ARROW)}
