"""Numbers on a command line: the range options of click let nan through."""

import math
from collections.abc import Callable

import typer


def number(*, at_least: float = 0.0, above: float | None = None) -> Callable[[float | None], float | None]:
    """A callback for a numeric option: finite, and at least (or above) so much. An option not given passes."""

    def check(value: float | None) -> float | None:
        if value is None:
            return None
        if not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a finite number")
        if above is not None and value <= above:
            raise typer.BadParameter(f"{value} is not above {above:g}")
        if value < at_least:
            raise typer.BadParameter(f"{value} is below {at_least:g}")
        return value

    return check


def finite(text: str) -> float:
    """The type of a numeric option of argparse: finite, and not negative. Raises ValueError."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value
