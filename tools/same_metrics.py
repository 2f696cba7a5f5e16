"""Whether two runs learned the same to the bit: their metrics.jsonl, line by line, without what a clock is in.

python tools/same_metrics.py RUN OTHER. Exit code 1 at the first step and metric that differ, which is named; also
where one run has steps or metrics that the other has not.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from megatron_empg.common.jsonl import read_lines  # noqa: E402
from megatron_empg.run.metric_names import by_clock  # noqa: E402


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str | None:
    """The first thing that differs, in words; None where nothing does."""
    if len(one) != len(other):
        return f"one run has {len(one)} lines of metrics, the other {len(other)}"
    for left, right in zip(one, other, strict=True):
        for name in sorted({*left, *right}):
            if by_clock(name):
                continue
            values = left.get(name), right.get(name)
            if values[0] != values[1]:
                return (
                    f"step {left.get('step')}: {name} is {values[0]!r} in one run and {values[1]!r} in the other"
                )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("other", type=Path, help="folder of the run beside it")
    given = parser.parse_args()
    files = [folder / "metrics.jsonl" for folder in (given.run, given.other)]
    for file in files:
        if not file.is_file():
            sys.exit(f"{file} is not there; give the folders of two runs that have made a step")
    one, other = map(read_lines, files)
    if not one:
        sys.exit(f"{files[0]} has no line yet; give runs that have made a step")
    found = difference(one, other)
    if found is not None:
        sys.exit(found)
    print(f"{len(one)} lines of metrics are the same, but for what a clock is in")


if __name__ == "__main__":
    main()
