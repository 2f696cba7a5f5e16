"""Success before and after training, for several seeds: python bench/seeds.py RECIPE [key=value …] --seeds 1,2,3.

Each seed is a whole `empg train` run in runs/seeds/NAME-SEED; NAME is the recipe's with the overrides, so that
other overrides are other runs. A finished one is not run again. Prints each seed's figures, their means and
differences, and the share of step time spent outside the four phases.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from megatron_empg.common.jsonl import read_lines

LONGEST_NAME = 120
SERIES = ("test_id/sampled", "test_id/greedy", "test_ood/sampled", "test_ood/greedy")


def folder_name(recipe: Path, overrides: list[str]) -> str:
    """Recipe and overrides, in any order the same: ``quickstart,algorithm.modulation=none``."""
    words = sorted(re.sub(r"[^\w.=,+-]+", "_", word).strip("_") for word in dict.fromkeys(overrides))
    name = ",".join([recipe.stem, *words])
    exact = hashlib.sha256("\0".join([str(recipe), *sorted(set(overrides))]).encode()).hexdigest()[:8]
    rewritten = sorted(set(overrides)) != words or len(name) > LONGEST_NAME
    return f"{name[:LONGEST_NAME]},{exact}" if rewritten else name


def run(recipe: Path, name: str, seed: int, overrides: list[str]) -> list[dict[str, float]]:
    """The metrics of one seed's run, which is started or continued if it is not finished."""
    folder = Path("runs/seeds") / f"{name}-{seed}"
    command = [sys.executable, "-m", "megatron_empg.cli", "train", str(recipe)]
    started = time.monotonic()
    subprocess.run(
        [*command, f"run.folder={folder}", f"run.seed={seed}", *overrides], check=True, stdout=sys.stderr
    )
    print(f"seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return read_lines(folder / "metrics.jsonl")


def figures(records: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """(before, after) of each series."""
    evaluated = [record for record in records if f"eval/{SERIES[0]}" in record]
    return {name: (evaluated[0][f"eval/{name}"], evaluated[-1][f"eval/{name}"]) for name in SERIES}


def other_share(records: list[dict[str, float]]) -> float:
    """Share of the steps' time outside rollout, score, update and sync."""
    steps = [record for record in records if "time/step" in record]
    return sum(record["time/other"] for record in steps) / sum(record["time/step"] for record in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas")
    parser.add_argument("--name", help="of the run folders (default: the recipe's, with the overrides)")
    arguments = parser.parse_intermixed_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    name = arguments.name or folder_name(arguments.recipe, arguments.overrides)
    runs = {seed: run(arguments.recipe, name, seed, arguments.overrides) for seed in seeds}
    table = Table(title=f"{name}: success before -> after (change in points)")
    for column in ("seed", *SERIES, "outside phases"):
        table.add_column(column)
    results = {seed: figures(records) for seed, records in runs.items()}
    for seed, result in results.items():
        cells = [f"{a:.1%} -> {b:.1%} ({100 * (b - a):+.1f})" for a, b in result.values()]
        table.add_row(str(seed), *cells, f"{other_share(runs[seed]):.1%}")
    means = [tuple(mean(r[name][i] for r in results.values()) for i in (0, 1)) for name in SERIES]
    table.add_row("mean", *(f"{a:.1%} -> {b:.1%} ({100 * (b - a):+.1f})" for a, b in means), "")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
