"""Listings on disk: of a million products only their places are in memory, and a page reads what it shows."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from megatron_empg.environments.webshop.product import GoalOption, Instruction, Listing, Product

NOWHERE = -1


class Spool:
    """Values of JSON in a file of its own, which is gone when nobody holds it any more."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as this
        self._size = 0

    def add(self, value: Any) -> int:
        """Where it lies from now on."""
        line = json.dumps(value, ensure_ascii=False).encode("utf-8")
        place = self._size
        self._file.write(len(line).to_bytes(4, "little") + line)
        self._size += 4 + len(line)
        return place

    def flush(self) -> None:
        """Make what was added readable."""
        self._file.flush()

    def read(self, place: int) -> Any:
        """The value; any number of threads may ask."""
        number = self._file.fileno()
        size = int.from_bytes(os.pread(number, 4, place), "little")
        return json.loads(os.pread(number, size, place + 4))


class ListingStore:
    """Products by number, in the order in which they came, and what may be asked of them."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._products = array("q")
        self._attributes = array("q")
        self._general = array("q")
        self._human = array("q")
        self._numbers: dict[str, int] = {}
        self._category_numbers: dict[str, int] = {}
        self._category_names: list[str] = []
        self._categories = array("l")

    def __len__(self) -> int:
        return len(self._products)

    def number_of(self, asin: str) -> int | None:
        """The number of a product; None if there is none."""
        return self._numbers.get(asin)

    def add(self, product: Product) -> None:
        """One more product, unless there is one of its asin."""
        if product.asin in self._numbers:
            return
        self._numbers[product.asin] = len(self._products)
        self._products.append(self._spool.add(_plain(product)))
        for column in (self._attributes, self._general, self._human):
            column.append(NOWHERE)
        self._categories.append(self._category(product.category))

    def describe(self, asin: str, attributes: tuple[str, ...] | None, general: Instruction | None) -> None:
        """Attributes of a product, and what is asked of it; an asin that is not sold is passed over."""
        number = self._numbers.get(asin)
        if number is None:
            return
        if attributes is not None:
            self._attributes[number] = self._spool.add(attributes)
        if general is not None:
            self._general[number] = self._spool.add(_plain(general))

    def ask(self, asin: str, instructions: tuple[Instruction, ...]) -> None:
        """What people ask of a product; an asin that is not sold is passed over."""
        number = self._numbers.get(asin)
        if number is not None:
            self._human[number] = self._spool.add([_plain(instruction) for instruction in instructions])

    def flush(self) -> None:
        """Make what was added readable."""
        self._spool.flush()

    def product(self, number: int) -> Product:
        """The product of a number, with its attributes."""
        said = self._spool.read(self._products[number])
        if self._attributes[number] != NOWHERE:
            said["attributes"] = self._spool.read(self._attributes[number])
        for name in ("bullets", "prices", "attributes"):
            said[name] = tuple(said[name])
        said["options"] = {name: tuple(values) for name, values in said["options"].items()}
        return Product(**said)

    def listing(self, number: int) -> Listing:
        """The product of a number, and what may be asked of it."""
        human: tuple[Instruction, ...] = ()
        if self._human[number] != NOWHERE:
            human = tuple(_instruction(one) for one in self._spool.read(self._human[number]))
        general = None
        if self._general[number] != NOWHERE:
            general = _instruction(self._spool.read(self._general[number]))
        return Listing(self.product(number), human, general)

    def asked(self, number: int, *, human: bool) -> bool:
        """Whether anything is asked of a product; nothing is read."""
        return (self._human if human else self._general)[number] != NOWHERE

    def category(self, number: int) -> str:
        """The department of a product; nothing is read."""
        return self._category_names[self._categories[number]]

    @property
    def departments(self) -> tuple[str, ...]:
        """The categories that there are."""
        return tuple(self._category_names)

    def products(self) -> Iterator[Product]:
        """All of them, in order."""
        for number in range(len(self)):
            yield self.product(number)

    def _category(self, name: str) -> int:
        if name not in self._category_numbers:
            self._category_numbers[name] = len(self._category_names)
            self._category_names.append(name)
        return self._category_numbers[name]


def _plain(value: Product | Instruction) -> dict[str, Any]:
    """Its fields; `dataclasses.asdict` would copy what is in them, which takes ten times as long."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _instruction(said: dict[str, Any]) -> Instruction:
    options = tuple(GoalOption(*option) for option in said["options"])
    return Instruction(said["text"], tuple(said["attributes"]), options)
