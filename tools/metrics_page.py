"""Write the tables of docs/metrics.md anew, from megatron_empg/run/metric_names.py.

python tools/metrics_page.py [--check]. With --check nothing is written, and the exit code is 1 if the page is out
of date. What stands before and after the tables is written by hand.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_empg.run.metric_names import FAMILIES, Family  # noqa: E402

PAGE = ROOT / "docs/metrics.md"
BEGIN = "<!-- The tables are made by `python tools/metrics_page.py` of megatron_empg/run/metric_names.py. -->"
END = "<!-- From here on by hand. -->"


def tables() -> str:
    """All families, each with its heading."""
    return "\n".join(line for family in FAMILIES for line in _table(family))


def _table(family: Family) -> Iterator[str]:
    yield from (f"### {family.title}", "", family.about, "")
    yield from ("| name | unit | what it is | what to look for |", "|---|---|---|---|")
    for metric in family.metrics:
        cells = [f"`{metric.name}`", metric.unit, _cell(metric.meaning), _cell(metric.look_for)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cell(text: str) -> str:
    """Text as a table's cell holds it: a bar would end the cell."""
    return text.replace("|", "\\|")


def renewed(page: str) -> str:
    """The page with its tables made anew. Raises ValueError for a page without the two marks."""
    for mark in (BEGIN, END):
        if page.count(mark) != 1:
            raise ValueError(
                f"{PAGE} holds {page.count(mark)} lines {mark!r}; the tables stand between two such marks"
            )
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if the page is out of date"
    )
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    made = renewed(page)
    if made == page:
        return
    if check:
        sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/metrics_page.py")
    aside = PAGE.with_suffix(".md.new")
    aside.write_text(made, encoding="utf-8")
    aside.replace(PAGE)


if __name__ == "__main__":
    main()
