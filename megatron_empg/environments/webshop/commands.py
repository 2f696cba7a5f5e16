"""How a command is written: ``search[keywords]`` or ``click[what the page offers]``."""

from __future__ import annotations

from typing import NamedTuple


class ShopCommand(NamedTuple):
    """`name` is "search" or "click" where it means something; `argument` is None where there are no brackets."""

    name: str
    argument: str | None


def read_command(text: str) -> ShopCommand:
    """Read a command as WebShop does: from the last bracket that opens before the last one that closes.

    Case does not matter.

    >>> read_command("click[Buy Now]")
    ShopCommand(name='click', argument='buy now')
    """
    plain = text.strip().lower()
    closes = plain.rfind("]")
    if closes > 2:
        opens = plain.rfind("[", 1, closes - 1)
    else:
        opens = -1
    if opens < 0:
        return ShopCommand(plain, None)
    return ShopCommand(plain[:opens], plain[opens + 1 : closes])
