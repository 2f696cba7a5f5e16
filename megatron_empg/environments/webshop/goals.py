"""All goals of a catalogue, in the order in which WebShop shuffles them; each is made when it is asked for.

WebShop draws price limits, and prices of ranges, from a generator that it does not seed. Here they follow from the
product, so that a goal is the same in every process.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from megatron_empg.environments.webshop.errors import CatalogueError
from megatron_empg.environments.webshop.product import NO_LIMIT, Goal, GoalOption, Instruction, Listing, Product
from megatron_empg.environments.webshop.store import ListingStore

SHUFFLED_BY = 233
"""Seed with which WebShop shuffles its goals."""
_LIMITS = [10.0 * number for number in range(1, 100)]
_NEAREST = 4
MOST_OF_A_PRODUCT = 1_000_000
"""Goals of one product: combinations of its options grow with the product of their numbers."""
MOST_GOALS = 20_000_000
"""Goals of a catalogue: while they are shuffled, each takes some 60 bytes."""


def price_of(product: Product) -> float:
    """What it costs: its price, or one within its range."""
    if len(product.prices) == 1:
        return product.prices[0]
    return random.Random(f"price {product.asin}").uniform(*product.prices[:2])


def price_limit(product: Product, which: int) -> float | None:
    """What the goal of an instruction may cost: the higher of two of the next tens of dollars above the price.
    None where there are not two below 1,000."""
    price = price_of(product)
    above = [limit for limit in _LIMITS if limit > price][:_NEAREST]
    if len(above) < 2:
        return None
    return max(random.Random(f"limit {product.asin} {which}").sample(above, 2))


@dataclass(frozen=True)
class GoalSplits:
    """Numbers of goals by split."""

    train: array[int]
    test: array[int]
    held_out: array[int]


class GoalBook(Sequence[Goal]):
    """The goals of a store: what people ask for, or what goes with every combination of a product's options."""

    def __init__(self, store: ListingStore, *, human: bool) -> None:
        self._store = store
        self._human = human
        products, choices = array("l"), array("l")
        for number in range(len(store)):
            if store.asked(number, human=human):
                count = _choices(store.listing(number), human=human)
                _check_counts(store.product(number).asin, count, len(products) + count)
                products.extend([number] * count)
                choices.extend(range(count))
        order = list(range(len(products)))
        random.Random(SHUFFLED_BY).shuffle(order)
        self._products = array("l", (products[place] for place in order))
        self._choices = array("l", (choices[place] for place in order))

    def __len__(self) -> int:
        return len(self._products)

    def __getitem__(self, number: int) -> Goal:  # type: ignore[override]  # nobody asks for slices
        listing, choice = self._store.listing(self._products[number]), self._choices[number]
        if self._human:
            return _goal(number, listing.product, listing.human[choice], choice)
        assert listing.general is not None, "products of which nothing is asked have no goals"
        return _combined(number, listing.product, listing.general, choice)

    def category(self, number: int) -> str:
        """The department of a goal."""
        return self._store.category(self._products[number])

    def splits(self, *, test: int, left_out: int, held_out: frozenset[str]) -> GoalSplits:
        """The first `test` goals, those behind the `left_out` next ones, and those of departments `held_out`,
        which count for neither."""
        found = GoalSplits(array("l"), array("l"), array("l"))
        seen = 0
        for number in range(len(self)):
            if self.category(number) in held_out:
                found.held_out.append(number)
                continue
            seen += 1
            if seen <= test:
                found.test.append(number)
            elif seen > test + left_out:
                found.train.append(number)
        return found


def _choices(listing: Listing, *, human: bool) -> int:
    if human:
        return len(listing.human)
    return prod(len(values) for values in listing.product.options.values())


def _check_counts(asin: str, of_product: int, of_all: int) -> None:
    """Raises CatalogueError for more goals than are kept."""
    for count, most, whose in (
        (of_product, MOST_OF_A_PRODUCT, "this product has"),
        (of_all, MOST_GOALS, "the products up to this one have"),
    ):
        if count > most:
            raise CatalogueError(
                "the goals",
                f"product {asin[:40]!a}",
                f"{whose} more than the {most:,} that can be kept, one for every combination of options. Give "
                "`instructions`, of which each is one goal, or take options out of the file",
            )


def _combined(number: int, product: Product, general: Instruction, choice: int) -> Goal:
    """The goal of one combination of options, by its place among all of them."""
    options = combination(product.options, choice)
    told = ", and ".join(f"{name}: {value}" for name, value in options)
    if told:
        text = f"{general.text} with {told}"
    else:
        text = general.text
    return _goal(number, product, Instruction(text, general.attributes, options), 0)


def combination(options: Mapping[str, Sequence[str]], choice: int) -> tuple[GoalOption, ...]:
    """The combination of a number: names in alphabetical order, the last one's values change first."""
    found: list[GoalOption] = []
    for name in sorted(options, reverse=True):
        choice, which = divmod(choice, len(options[name]))
        found.append(GoalOption(name, options[name][which]))
    return tuple(reversed(found))


def _goal(number: int, product: Product, asked: Instruction, which: int) -> Goal:
    limit = price_limit(product, which)
    told = ""
    if limit is not None:
        told = f", and price lower than {limit:.2f} dollars"
    return Goal(
        number=number,
        asin=product.asin,
        category=product.category,
        query=product.query,
        title=product.title,
        product_category=product.product_category,
        text=asked.text + told,
        attributes=asked.attributes,
        options=asked.options,
        price_limit=NO_LIMIT if limit is None else limit,
    )
