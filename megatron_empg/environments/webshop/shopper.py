"""A scripted shopper: searches what an instruction asks for, opens what fits, chooses options and buys."""

from __future__ import annotations

import random
from dataclasses import dataclass

from megatron_empg.environments.text_worlds.source import ScriptedTurn
from megatron_empg.environments.webshop.catalogue import Catalogue
from megatron_empg.environments.webshop.colours import normal_colour
from megatron_empg.environments.webshop.goals import price_of
from megatron_empg.environments.webshop.pages import DESCRIPTION, NEXT, PREVIOUS, RESULTS_PER_PAGE
from megatron_empg.environments.webshop.product import Goal, Product
from megatron_empg.environments.webshop.reward import ALIKE, comparable, matched_attributes
from megatron_empg.environments.webshop.token_ratio import token_set_ratio

_PRICE = ", and price lower than "
_OPTIONS = " with "
_ASKING = frozenset(
    "i am looking for need find me want to buy a an the some that is are please would like".split()  # noqa: SIM905
)
_TURNS_OF_A_PURCHASE = 3
"""A search, a product, and the purchase; pages and options come between."""


@dataclass(frozen=True)
class ShopperChances:
    """How often the shopper errs. `vague`: searches the kind of thing alone; `hasty`: takes the first result;
    `forgets` and `wrong`: an option; `reads`: looks at the description before, which costs turns alone."""

    vague: float = 0.0
    hasty: float = 0.0
    forgets: float = 0.0
    wrong: float = 0.0
    reads: float = 0.0


SHOPPERS = {
    "flawless": ShopperChances(),
    "fallible": ShopperChances(vague=0.1, hasty=0.1, forgets=0.05, wrong=0.05, reads=0.1),
}


@dataclass(frozen=True)
class _Query:
    """Words to search for, and what is thought of them."""

    thought: str
    words: str


@dataclass(frozen=True)
class _Found:
    """A product among results: where it stands, counted from 0, and how much of the goal it fulfils."""

    product: Product
    place: int
    fits: int


class Shopper:
    """Plays one goal, which it knows. Different seeds err differently."""

    def __init__(
        self, catalogue: Catalogue, chances: ShopperChances, max_turns: int, results: int = RESULTS_PER_PAGE
    ) -> None:
        """`results`: how many stand on a page."""
        self._catalogue = catalogue
        self._chances = chances
        self._max_turns = max_turns
        self._results = results

    def turns(self, goal: Goal, seed: int) -> list[ScriptedTurn]:
        """A whole episode, which ends with a purchase if there are turns enough."""
        rng = random.Random(f"shopper {seed} {goal.number}")
        query, found = self._search(goal, rng)
        turns = [ScriptedTurn(query.thought, f"search[{query.words}]")]
        if found is None:
            return turns
        page = found.place // self._results + 1
        for number in range(2, page + 1):
            turns.append(ScriptedTurn(f"nothing fits here, so I look at page {number}", _click(NEXT)))
        shown = found.place % self._results + 1
        # The product's number is written as the page shows it, so that a policy can copy it.
        turns.append(ScriptedTurn(f"result {shown} fits", f"click[{found.product.asin}]"))
        chosen = self._chosen(found.product, goal, rng)
        room = self._max_turns - len(turns) - 1
        chosen = chosen[: max(room, 0)]
        if rng.random() < self._chances.reads and room - len(chosen) >= 2:
            turns.append(ScriptedTurn("I read what it is", _click(DESCRIPTION)))
            turns.append(ScriptedTurn("I go back to choose", _click(PREVIOUS)))
        turns += [ScriptedTurn(f"I choose the {name}", f"click[{value}]") for name, value in chosen]
        turns.append(ScriptedTurn("all is chosen, so I buy it", "click[buy now]"))
        return turns

    def _search(self, goal: Goal, rng: random.Random) -> tuple[_Query, _Found | None]:
        """A query, and the product to open: the first one that fits within the turns there are."""
        if rng.random() < self._chances.vague:
            vague = _Query("I search for things of this kind", goal.query)
            return vague, self._best(goal.query, goal, self._results)
        hasty = rng.random() < self._chances.hasty
        pages = max(1, self._max_turns - _TURNS_OF_A_PURCHASE - len(goal.options) + 1)
        tried: list[tuple[_Query, _Found | None]] = []
        for query in self._queries(goal):
            found = self._best(query.words, goal, 1 if hasty else pages * self._results)
            tried.append((query, found))
            if hasty or (found is not None and found.fits == _all_of(goal)):
                return tried[-1]
        return max(tried, key=lambda one: -1 if one[1] is None else one[1].fits)

    def _queries(self, goal: Goal) -> list[_Query]:
        """What the instruction says, then with options too, then what the product is called."""
        said = " ".join(_words_of(goal))
        queries = [_Query("I search for what is asked", said)]
        if goal.options:
            options = " ".join(option.value for option in goal.options)
            queries.append(_Query("I search for it with its options", f"{said} {options}"))
        return [*queries, _Query("I search for it by its name", goal.title.lower())]

    def _best(self, query: str, goal: Goal, most: int) -> _Found | None:
        """Of the first results the one that fits best, the first of equal ones."""
        best: _Found | None = None
        for place, number in enumerate(self._catalogue.search.best(query)[:most]):
            product = self._catalogue.store.product(number)
            fits = _fit(product, goal)
            if best is None or fits > best.fits:
                best = _Found(product, place, fits)
            if fits == _all_of(goal):
                break
        return best

    def _chosen(self, product: Product, goal: Goal, rng: random.Random) -> list[tuple[str, str]]:
        """(name, value) of each option in turn."""
        values: list[tuple[str, str]] = []
        for name, value in right_options(product, goal).items():
            if rng.random() < self._chances.forgets:
                continue
            others = [other for other in product.options[name] if other != value]
            err = others and rng.random() < self._chances.wrong
            values.append((name, rng.choice(others) if err else value))
        return values


def right_options(product: Product, goal: Goal) -> dict[str, str]:
    """{name of the option: value} of a product that fulfils a goal's options, as far as it has them."""
    found: dict[str, str] = {}
    for wanted in goal.options:
        text = comparable(wanted)
        if wanted.name in product.options:
            names = [wanted.name]
        else:
            names = list(product.options)
        fits = [
            (token_set_ratio(normal_colour(value), text), value == wanted.value, name, value)
            for name in names
            if name not in found
            for value in product.options[name]
        ]
        if fits:
            ratio, _, name, value = max(fits, key=lambda one: (one[1], one[0]))
            if ratio > ALIKE:
                found[name] = value
    return found


def _fit(product: Product, goal: Goal) -> int:
    """Parts of the goal that a purchase would fulfil; none of a product of another kind."""
    if product.product_category != goal.product_category:
        return 0
    attributes = matched_attributes(product, goal.attributes)
    return attributes + len(right_options(product, goal)) + (price_of(product) <= goal.price_limit)


def _all_of(goal: Goal) -> int:
    return len(goal.attributes) + len(goal.options) + 1


def _words_of(goal: Goal) -> list[str]:
    """What an instruction asks for, without its options, its price and how it asks."""
    said = goal.text.partition(_PRICE)[0]
    if any(option.name for option in goal.options):
        said = said.rpartition(_OPTIONS)[0] or said
    return [word for word in said.replace(",", " ").split() if word.lower() not in _ASKING]


def _click(name: str) -> str:
    return f"click[{name.lower()}]"
