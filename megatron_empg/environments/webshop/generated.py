"""The generated catalogue: products made up of plausible words, where WebShop's own files are not at hand.

It has WebShop's form (departments, attributes, options, prices, instructions) and none of its products.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megatron_empg.environments.webshop.product import NO_PRICE, Instruction, Listing, Product
from megatron_empg.environments.webshop.reward import ARROW

WORDS = Path(__file__).with_name("generated_words.yaml")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ASIN_DIGITS = 8
_SCATTER = 1_000_003  # has no factor in common with 36, so that asins differ and neighbours look unlike
_NO_PRICE_SHARE, _RANGE_SHARE, _PLAIN_SHARE = 0.02, 0.15, 0.1
_MOST_ASKED = 3


@dataclass(frozen=True)
class ProductKind:
    """A kind of thing, as generated_words.yaml describes it."""

    department: str
    noun: str
    thing: str
    path: str
    query: str
    prices: tuple[int, int]
    styles: tuple[str, ...]
    features: tuple[str, ...]
    uses: tuple[str, ...]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class ProductVocabulary:
    """All that products are made of."""

    kinds: tuple[ProductKind, ...]
    brand_starts: tuple[str, ...]
    brand_ends: tuple[str, ...]
    asking: tuple[str, ...]
    bullets: tuple[str, ...]

    @property
    def departments(self) -> tuple[str, ...]:
        """Their names, each once."""
        return tuple(dict.fromkeys(kind.department for kind in self.kinds))


def generated_listings(count: int, seed: int) -> Iterator[Listing]:
    """`count` products; the first ones are the same for any count. Kinds take turns."""
    words = vocabulary()
    for number in range(count):
        rng = random.Random(f"product {seed} {number}")
        yield _listing(number, words.kinds[number % len(words.kinds)], words, rng)


@cache
def vocabulary() -> ProductVocabulary:
    """What generated_words.yaml says."""
    import yaml

    read = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    kinds = [
        _kind(name, department["path"], fields)
        for name, department in read["departments"].items()
        for fields in department["types"]
    ]
    brands = read["brands"]
    return ProductVocabulary(
        tuple(kinds),
        tuple(brands["starts"]),
        tuple(brands["ends"]),
        tuple(read["asking"]),
        tuple(read["bullets"]),
    )


def _kind(department: str, path: str, fields: dict[str, Any]) -> ProductKind:
    least, most = fields["prices"]
    return ProductKind(
        department=department,
        noun=fields["noun"],
        thing=fields["thing"],
        path=f"{path} {ARROW} {fields['path']} {ARROW} {fields['noun']}",
        query=fields["query"],
        prices=(least, most),
        styles=tuple(fields["styles"]),
        features=tuple(fields["features"]),
        uses=tuple(fields["uses"]),
        attributes=tuple(fields["attributes"]),
        options={name: tuple(values) for name, values in fields["options"].items()},
    )


def _listing(number: int, kind: ProductKind, words: ProductVocabulary, rng: random.Random) -> Listing:
    attributes = tuple(rng.sample(kind.attributes, rng.randint(3, 5)))
    feature, use, style = rng.choice(kind.features), rng.choice(kind.uses), rng.choice(kind.styles)
    brand = rng.choice(words.brand_starts) + rng.choice(words.brand_ends)
    title = f"{brand} {style} {kind.noun} with {feature}, {attributes[0].title()}, {use}"
    description = _description(brand, kind, style, use, attributes)
    # Each of these draws, so that their order is part of what a seed means.
    bullets = _bullets(words, attributes, feature, rng)
    prices = _prices(kind, rng)
    options = _options(kind, rng)
    product = Product(
        asin=asin_of(number),
        title=title,
        description=description,
        bullets=bullets,
        category=kind.department,
        query=kind.query,
        product_category=kind.path,
        prices=prices,
        options=options,
        attributes=attributes,
    )
    return Listing(product, general=_asked(kind, attributes, words, rng))


def asin_of(number: int) -> str:
    """An identifier such as WebShop's products have.

    >>> asin_of(0), asin_of(1)
    ('B000000000', 'B0000LFLV')
    """
    left = number * _SCATTER % len(_DIGITS) ** _ASIN_DIGITS
    digits = ""
    for _ in range(_ASIN_DIGITS):
        left, digit = divmod(left, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return f"B0{digits}"


def _description(brand: str, kind: ProductKind, style: str, use: str, attributes: tuple[str, ...]) -> str:
    return (
        f"The {brand} {style.lower()} {kind.thing} {use.lower()} is {attributes[-1]}. It comes in a sturdy box, "
        "with a note on care, and can be sent back within thirty days."
    )


def _bullets(
    words: ProductVocabulary, attributes: tuple[str, ...], feature: str, rng: random.Random
) -> tuple[str, ...]:
    """A sentence for each attribute but the first, which the title names."""
    written = []
    for attribute in attributes[1:]:
        sentence = rng.choice(words.bullets).format(attribute=attribute, feature=feature.lower())
        written.append(sentence[0].upper() + sentence[1:])
    return tuple(written)


def _prices(kind: ProductKind, rng: random.Random) -> tuple[float, ...]:
    least, most = kind.prices
    drawn = rng.random()
    if drawn < _NO_PRICE_SHARE:
        return (NO_PRICE,)
    price = round(rng.uniform(least, most) - 0.01, 2)
    if drawn < _NO_PRICE_SHARE + _RANGE_SHARE:
        return price, round(price * rng.uniform(1.1, 1.6), 2)
    return (price,)


def _options(kind: ProductKind, rng: random.Random) -> dict[str, tuple[str, ...]]:
    """Some of the values of each option, in the kind's order; some products have none."""
    if rng.random() < _PLAIN_SHARE:
        return {}
    found = {}
    for name, values in kind.options.items():
        kept = set(rng.sample(values, rng.randint(2, min(4, len(values)))))
        found[name] = tuple(value for value in values if value in kept)
    return found


def _asked(
    kind: ProductKind, attributes: tuple[str, ...], words: ProductVocabulary, rng: random.Random
) -> Instruction:
    asked = tuple(rng.sample(attributes, rng.randint(1, _MOST_ASKED)))
    text = rng.choice(words.asking).format(attributes=", ".join(asked), thing=kind.thing)
    return Instruction(text, asked)
