"""The shop's pages as the text mode of WebShop shows them: visible texts in order, and what can be clicked.

The words of buttons and headings are WebShop's interface, so they stand here as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_empg.environments.webshop.product import Product

SEPARATOR = " [SEP] "
BACK_TO_SEARCH = "Back to Search"
NEXT, PREVIOUS = "Next >", "< Prev"
BUY = "Buy Now"
DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES = "Description", "Features", "Reviews", "Attributes"
SUB_PAGES = (DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES)
SEARCH = "Search"
RESULTS_PER_PAGE = 10
"""Products on a page of results, unless settings say otherwise."""
_INSTRUCTION = "Instruction:"


@dataclass(frozen=True)
class ShopPage:
    """`texts` are those behind the instruction; `clickables` are in lower case, as they are clicked."""

    texts: tuple[str, ...]
    clickables: tuple[str, ...]
    search_bar: bool = False

    @property
    def text(self) -> str:
        """What a policy reads that knows the instruction."""
        return SEPARATOR.join(self.texts)

    def published(self, instruction: str) -> str:
        """The whole observation, as WebShop's text mode has it."""
        head = [_INSTRUCTION]
        if self.search_bar:
            head = ["WebShop", _INSTRUCTION]
        return SEPARATOR.join((*head, instruction, *self.texts))

    @property
    def choices(self) -> tuple[str, ...]:
        """The commands that do something here. WebShop also offers the search button, which does nothing."""
        clicks = tuple(f"click[{name}]" for name in self.clickables if name != SEARCH.lower())
        if self.search_bar:
            return ("search[<your query>]", *clicks)
        return clicks


def search_page() -> ShopPage:
    """Where an episode begins."""
    return ShopPage((SEARCH,), (SEARCH.lower(),), search_bar=True)


def results_page(found: Sequence[Product], number: int, total: int) -> ShopPage:
    """One page of results: the products that stand on it, and how many there are on all pages."""
    if number > 1:
        buttons = [BACK_TO_SEARCH, PREVIOUS, NEXT]
    else:
        buttons = [BACK_TO_SEARCH, NEXT]
    texts = [BACK_TO_SEARCH, f"Page {number} (Total results: {total})", *buttons[1:]]
    for product in found:
        texts += [product.asin, product.title.strip(), product.price_tag]
    return ShopPage(tuple(texts), _clickables(*buttons, *(product.asin for product in found)))


def item_page(product: Product, *, attributes: bool, chosen: Sequence[str] = ()) -> ShopPage:
    """A product with its options. `attributes`: whether there is a page of them, too; `chosen`: values of which it
    says that they were chosen."""
    sub_pages: Sequence[str] = SUB_PAGES
    if not attributes:
        sub_pages = SUB_PAGES[:-1]
    # The words are those of WebShop's rich text mode.
    texts = [*(f"You have clicked {value}." for value in chosen), BACK_TO_SEARCH, PREVIOUS]
    for name, values in product.options.items():
        texts += [name, *values]
    texts += [product.title.strip(), f"Price: {product.price_tag}", "Rating: N.A.", *sub_pages, BUY]
    options = [value for values in product.options.values() for value in values]
    return ShopPage(tuple(texts), _clickables(BACK_TO_SEARCH, PREVIOUS, *sub_pages, BUY, *options))


def sub_page(product: Product, name: str) -> ShopPage:
    """What is told of a product on a page of its own."""
    told: dict[str, Sequence[str]] = {
        DESCRIPTION: (product.description,),
        FEATURES: product.bullets,
        REVIEWS: (),
        ATTRIBUTES: (*product.attributes, product.category, product.query, product.product_category),
    }
    texts = [text.strip() for text in told[name] if text]
    return ShopPage((BACK_TO_SEARCH, PREVIOUS, *texts), _clickables(BACK_TO_SEARCH, PREVIOUS))


def done_page(score: float) -> ShopPage:
    """What is there once something was bought."""
    return ShopPage(("Thank you for shopping with us!", "Your score (min 0.0, max 1.0)", str(score)), ())


def _clickables(*names: str) -> tuple[str, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(name.lower() for name in names))
