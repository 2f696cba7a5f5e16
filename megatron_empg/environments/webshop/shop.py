"""One visit to the shop of a catalogue: a page, and another after each command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from megatron_empg.environments.webshop import pages
from megatron_empg.environments.webshop.catalogue import Catalogue
from megatron_empg.environments.webshop.commands import read_command
from megatron_empg.environments.webshop.goals import price_of
from megatron_empg.environments.webshop.pages import ShopPage
from megatron_empg.environments.webshop.product import Goal, Product
from megatron_empg.environments.webshop.reward import PurchaseScore, score_of
from megatron_empg.environments.webshop.titles import Titles

PageName = Literal["search", "results", "item", "sub page", "done"]


@dataclass(frozen=True)
class ShopPlace:
    """Where a visitor stands. `found` are the numbers of all results, `chosen` the options by name."""

    name: PageName = "search"
    keywords: str = ""
    found: tuple[int, ...] = ()
    page: int = 1
    asin: str = ""
    sub_page: str = ""
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The name of the place: equal ones look and act alike. Keywords that a policy has written without end are
        known by their hash."""
        keywords = self.keywords
        if len(keywords) > 200:
            keywords = hashlib.sha256(keywords.encode("utf-8", "replace")).hexdigest()
        parts = (self.name, keywords, self.page, self.asin, self.sub_page, sorted(self.chosen.items()))
        return json.dumps(parts)


@dataclass(frozen=True)
class PageOptions:
    """What pages show. `attributes`: a page of them; `chosen`: what was chosen of a product's options."""

    results: int = pages.RESULTS_PER_PAGE
    attributes: bool = False
    chosen: bool = False


class Visit:
    """The shop as one visitor sees it. Whatever is no command of the page leaves the page as it is."""

    def __init__(self, catalogue: Catalogue, goal: Goal, titles: Titles, shown: PageOptions | None = None) -> None:
        self._catalogue = catalogue
        self._goal = goal
        self._titles = titles
        self._shown = PageOptions() if shown is None else shown
        self.place = ShopPlace()
        self.page: ShopPage = pages.search_page()
        self.score: PurchaseScore | None = None

    def act(self, command: str) -> None:
        """Carry out a command. A search is possible from any page, as in WebShop."""
        name, argument = read_command(command)
        if self.score is not None or argument is None:
            return
        if name == "search":
            self._search(argument)
        elif name == "click":
            self._click(argument)

    def _search(self, keywords: str) -> None:
        found = tuple(self._catalogue.search.best(keywords))
        self._go(ShopPlace("results", keywords=keywords, found=found))

    def _click(self, wanted: str) -> None:
        """Of names that differ in blanks alone, as a policy may write them, the first is meant."""
        words = wanted.split()
        offered = next((name for name in self.page.clickables if name.split() == words), None)
        if offered is None:
            return
        if offered in _BUTTONS:
            _BUTTONS[offered](self)
        elif self.place.name == "results":
            self._go(replace(self.place, name="item", asin=self._asin_of(offered), chosen={}))
        elif self.place.name == "item":
            self._choose(offered)

    def _asin_of(self, offered: str) -> str:
        """That of the first product on a page of results that is offered so: a page offers it in lower case."""
        return next(product.asin for product in self._results(self.place) if product.asin.lower() == offered)

    def _choose(self, value: str) -> None:
        name = next(name for name, values in reversed(self._product.options.items()) if value in values)
        self._go(replace(self.place, chosen=self.place.chosen | {name: value}))

    def _next(self) -> None:
        self._go(replace(self.place, page=self.place.page + 1))

    def _previous(self) -> None:
        place = self.place
        if place.name == "results":
            self._go(replace(place, page=place.page - 1))
        elif place.name == "item":
            self._go(replace(place, name="results", asin="", chosen={}))
        else:
            self._go(replace(place, name="item", sub_page=""))

    def _to_search(self) -> None:
        self._go(ShopPlace())

    def _open(self, sub_page: str) -> None:
        self._go(replace(self.place, name="sub page", sub_page=sub_page))

    def _buy(self) -> None:
        product = self._product
        self.score = score_of(product, self._goal, price_of(product), self.place.chosen, self._titles)
        self._go(replace(self.place, name="done"))

    @property
    def _product(self) -> Product:
        number = self._catalogue.store.number_of(self.place.asin)
        assert number is not None, "only what was found can be opened"
        return self._catalogue.store.product(number)

    def _results(self, place: ShopPlace) -> list[Product]:
        """The products on a page of results."""
        start = (place.page - 1) * self._shown.results
        numbers = place.found[start : start + self._shown.results]
        return [self._catalogue.store.product(number) for number in numbers]

    def _go(self, place: ShopPlace) -> None:
        self.place = place
        self.page = self._page_of(place)

    def _page_of(self, place: ShopPlace) -> ShopPage:
        if place.name == "results":
            return pages.results_page(self._results(place), place.page, len(place.found))
        if place.name == "item":
            if self._shown.chosen:
                chosen = tuple(place.chosen.values())
            else:
                chosen = ()
            return pages.item_page(self._product, attributes=self._shown.attributes, chosen=chosen)
        if place.name == "sub page":
            return pages.sub_page(self._product, place.sub_page)
        if place.name == "done":
            assert self.score is not None, "a purchase has a score"
            return pages.done_page(self.score.value)
        return pages.search_page()


def _opener(name: str) -> Callable[[Visit], None]:
    return lambda visit: visit._open(name)


_BUTTONS: dict[str, Callable[[Visit], None]] = {
    pages.BUY.lower(): Visit._buy,
    pages.BACK_TO_SEARCH.lower(): Visit._to_search,
    pages.NEXT.lower(): Visit._next,
    pages.PREVIOUS.lower(): Visit._previous,
    pages.SEARCH.lower(): lambda visit: None,
    **{name.lower(): _opener(name) for name in pages.SUB_PAGES},
}
