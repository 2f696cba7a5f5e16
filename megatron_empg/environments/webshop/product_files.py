"""WebShop's files read: items_shuffle.json, items_ins_v2.json and items_human_ins.json, or others like them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from megatron_empg.environments.webshop.errors import CatalogueError
from megatron_empg.environments.webshop.fields import Fields, sound
from megatron_empg.environments.webshop.json_records import product_records, records_by_asin
from megatron_empg.environments.webshop.product import NO_PRICE, GoalOption, Instruction, Product

NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""Attributes of a product of which the files say none, as in WebShop."""
LONGEST_ASIN = 10
_NO_NUMBER = re.compile(r"[^\d.]")


def products_of(path: Path, first: int | None) -> Iterator[Product]:
    """The products of a file in its order, of its `first` records where that is given; those are left out whose
    asin is no asin. Raises CatalogueError."""
    for number, fields in enumerate(product_records(path)):
        if first is not None and number >= first:
            return
        product = product_from(fields)
        if product is not None:
            yield product


def product_from(fields: Fields) -> Product | None:
    """The product of a record; None for one without an asin. Raises CatalogueError."""
    asin = fields.text("asin")
    if asin == "nan" or len(asin) > LONGEST_ASIN:
        return None
    return Product(
        asin=asin,
        title=fields.text("name"),
        description=fields.text_or_nothing("full_description"),
        bullets=fields.texts("small_description"),
        category=fields.text("category"),
        query=fields.text("query").lower().strip(),
        product_category=fields.text("product_category"),
        prices=_prices(fields),
        options=_options(fields),
        attributes=NO_ATTRIBUTES,
    )


def attributes_of(path: Path) -> Iterator[tuple[str, tuple[str, ...] | None, Instruction | None]]:
    """(asin, attributes, the instruction that goes with any of its options) of a file like items_ins_v2.json; None
    for what is not there. Raises CatalogueError."""
    for asin, value, place in records_by_asin(path):
        fields = Fields.of(value, path, place)
        attributes = None
        if "attributes" in fields.values:
            attributes = fields.texts("attributes")
        yield asin, attributes, _general(fields)


def instructions_of(path: Path) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
    """(asin, what people asked for) of a file like items_human_ins.json. Raises CatalogueError."""
    for asin, value, place in records_by_asin(path):
        if not isinstance(value, list):
            raise CatalogueError(path, place, "a list of instructions should stand here")
        read = (_human(Fields.of(item, path, place)) for item in value)
        yield asin, tuple(instruction for instruction in read if instruction.attributes)


def _general(fields: Fields) -> Instruction | None:
    if fields.values.get("instruction") is None:
        return None
    attributes = fields.texts("instruction_attributes")
    if not attributes:
        raise fields.fault("instruction_attributes", "a list with something in it, as there is an instruction")
    return Instruction(fields.text("instruction"), attributes)


def _human(fields: Fields) -> Instruction:
    options = fields.values.get("instruction_options", [])
    if isinstance(options, dict):
        named = tuple(GoalOption(sound(str(name)), sound(str(value))) for name, value in options.items())
    else:
        named = tuple(GoalOption("", value) for value in fields.texts("instruction_options"))
    text = fields.text("instruction").strip(".")  # a price limit follows
    return Instruction(text, fields.texts("instruction_attributes"), named)


def _prices(fields: Fields) -> tuple[float, ...]:
    text = fields.text_or_nothing("pricing")
    if not text:
        return (NO_PRICE,)
    parts = [_NO_NUMBER.sub("", part) for part in text.split("$")[1:]]
    try:
        prices = tuple(float(part) for part in parts[:2])
    except ValueError:
        prices = ()
    if not prices or not all(isfinite(price) for price in prices):
        raise fields.fault("pricing", 'dollars such as "$9.99", two of them for a range, or null')
    return prices


def _options(fields: Fields) -> dict[str, tuple[str, ...]]:
    given = fields.values.get("customization_options")
    if not given:
        return {}
    if not isinstance(given, dict):
        raise fields.fault("customization_options", "an object of lists")
    found: dict[str, tuple[str, ...]] = {}
    for name, contents in given.items():
        if contents is not None:
            found[sound(name).lower()] = _values(fields, contents)
    return found


def _values(fields: Fields, contents: Any) -> tuple[str, ...]:
    if isinstance(contents, list):
        listed = contents
    else:
        listed = [None]
    values = [item.get("value") if isinstance(item, dict) else None for item in listed]
    if not all(isinstance(value, str) for value in values):
        raise fields.fault("customization_options", 'an object of lists of objects with a text as "value"')
    return tuple(sound(str(value)).strip().replace("/", " | ").lower() for value in values)
