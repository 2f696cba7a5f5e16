"""The templates of the page, which lie in the package beside this file."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from megatron_empg.report.chart import svg
from megatron_empg.report.episode import reach, tints
from megatron_empg.report.look import COLOURS


def render(template: str, /, **values: Any) -> str:
    """A template filled in, with the values escaped. Raises UndefinedError for a value that is missing."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(svg=svg, reach=reach, tints=tints)
    made.globals["colours"] = COLOURS
    return made
