"""Write docs/upstream.md anew, from the records of megatron_empg/upstream.

python tools/upstream_page.py [--check]. With --check nothing is written, and the exit code is 1 if the page is out
of date.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_empg.upstream.record import Departure, records  # noqa: E402

PAGE = ROOT / "docs/upstream.md"
HEAD = """# What is reached into

<!-- Made by `python tools/upstream_page.py` of the records in megatron_empg/upstream. -->

The project runs unmodified libraries. Where one lacks a seam, or is wrong, a function of `megatron_empg/upstream`
reaches into it: it replaces something (*patch*), or uses what the library does not document (*private API*).
Nothing outside that room does so, by a test over the source. Each function has a record: what is seen without it,
when, why, on which of the pinned versions, and when it can go. A test shows the symptom of each on the versions
installed, or that there is no public way. Where a newer version needs an entry no longer, that test fails with
"can go".

    python -m pytest tests/unit/upstream        # a minute; make test-py312 runs it on the clusters' Megatron-core

Brackets in the place of a symptom mean that there is no other way. What needs a GPU is checked by its signature,
and Transformer Engine by a package that fails as it does.
"""


def page() -> str:
    """The whole page: a table for each file of the room."""
    parts = [HEAD]
    for module, entries in groupby(records(), key=lambda record: record.module):
        parts.append(_table(module, list(entries)))
    return "\n".join(parts)


def _table(module: str, entries: list[Departure]) -> str:
    file = module.replace(".", "/") + ".py"
    about = (sys.modules[module].__doc__ or "").splitlines()[0]
    lines = [f"## `{file}`", "", about, ""]
    lines.append("| name | | library | without it | when | why | versions | can go when |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for entry in entries:
        cells = [f"`{entry.name}`", str(entry.kind), entry.library, entry.symptom, entry.trigger, entry.why]
        cells += [", ".join(entry.versions), entry.can_go_when]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    """Text as a table's cell holds it: a bar would end the cell."""
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it is out of date")
    if parser.parse_args().check:
        raise SystemExit(int(PAGE.read_text(encoding="utf-8") != page()))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
