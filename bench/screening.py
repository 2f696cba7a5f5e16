"""Algorithms with and without modulations, screened on the quickstart: python bench/screening.py [--minutes N].

Every cell (an algorithm, plain or with a method on top) is trained with the same seeds, steps and batches. Each
finished run becomes a line of docs/screening.jsonl, so that the table can be made in pieces: a run that has a line
is not made again, one that was interrupted is continued. `--table` prints the table of what is there, as Markdown.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from megatron_empg.common.jsonl import read_lines
from megatron_empg.recipe import load_recipe
from megatron_empg.run.folder import RunFolder

RECIPE = Path("recipes/quickstart.yaml")
RESULTS = Path("docs/screening.jsonl")
RUNS = Path("runs/screening")
# SAMPO draws again as often as the recipe's DAPO does, so that no algorithm plays more rounds.
ALGORITHMS = {
    "dapo": ["algorithm.name=dapo"],
    "grpo": ["algorithm.name=grpo"],
    "gigpo": ["algorithm.name=gigpo"],
    "sampo": ["algorithm.name=sampo", "algorithm.max_generation_rounds=2"],
}
METHODS = {
    "plain": ["algorithm.modulation=none"],
    "empg": ["algorithm.modulation=empg"],
    "aem": ["algorithm.modulation=aem"],
    "epo": ["algorithm.modulation=none", "algorithm.regularizer=epo"],
}
SEEDS = (1, 2, 3)
SHARED = ["evaluation.every=0", "evaluation.questions=500"]
SERIES = ("test_id/sampled", "test_id/greedy", "test_ood/sampled", "test_ood/greedy")


@dataclass(frozen=True)
class Run:
    """One cell and seed."""

    algorithm: str
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.algorithm}-{self.method}-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        chosen = [*ALGORITHMS[self.algorithm], *METHODS[self.method], *SHARED]
        return [*chosen, f"run.seed={self.seed}", f"run.folder={self.folder}"]


def all_runs() -> Iterator[Run]:
    """An algorithm after the other, so that what is there first are whole rows."""
    for algorithm in ALGORITHMS:
        for seed in SEEDS:
            for method in METHODS:
                yield Run(algorithm, method, seed)


def recorded(path: Path = RESULTS) -> dict[Run, dict[str, float]]:
    """{run: points of success gained by series} of the runs that have a line."""
    found: dict[Run, dict[str, float]] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        run = Run(record["algorithm"], record["method"], record["seed"])
        found[run] = {name: 100 * (record["after"][name] - record["before"][name]) for name in SERIES}
    return found


def train(run: Run) -> None:
    """Train or go on training, and write the run's line."""
    started = time.monotonic()
    command = [sys.executable, "-m", "megatron_empg.cli", "train", str(RECIPE), *run.overrides]
    ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    records = read_lines(run.folder / "metrics.jsonl")
    steps = load_recipe(RECIPE, run.overrides).run.steps
    # An interrupt ends a run in order, before its last step.
    if ended.returncode or not RunFolder(run.folder).finished(steps):
        print(f"{run}: ended with status {ended.returncode}; the same command goes on", file=sys.stderr)
        return
    evaluated = [record for record in records if f"eval/{SERIES[0]}" in record]
    line = {
        **asdict(run),
        "before": {name: evaluated[0][f"eval/{name}"] for name in SERIES},
        "after": {name: evaluated[-1][f"eval/{name}"] for name in SERIES},
        "steps": int(records[-1]["step"]),
        "overrides": run.overrides[:-1],
        "commit": commit(),
        "seconds": round(time.monotonic() - started),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    shutil.rmtree(run.folder)


def commit() -> str:
    """The code's; marked where the package has changes."""
    described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def table(found: dict[Run, dict[str, float]]) -> str:
    """Means over the seeds, and against the plain algorithm the mean and standard deviation of the differences."""
    lines = [
        "| algorithm | with | seeds | " + " | ".join(SERIES) + " |",
        "|---|---|---|" + "---|" * len(SERIES),
    ]
    for algorithm in ALGORITHMS:
        for method in METHODS:
            seeds = [seed for seed in SEEDS if Run(algorithm, method, seed) in found]
            if seeds:
                lines.append(row(found, algorithm, method, seeds))
    return "\n".join(lines)


def row(found: dict[Run, dict[str, float]], algorithm: str, method: str, seeds: list[int]) -> str:
    """One cell's."""
    cells = []
    for name in SERIES:
        gained = mean(found[Run(algorithm, method, seed)][name] for seed in seeds)
        cell = f"{gained:+.1f}"
        paired = [seed for seed in seeds if Run(algorithm, "plain", seed) in found]
        if method != "plain" and len(paired) > 1:
            differences = [difference(found, algorithm, method, seed, name) for seed in paired]
            cell += f" ({mean(differences):+.1f} ± {stdev(differences):.1f})"
        cells.append(cell)
    return f"| {algorithm.upper()} | {method} | {len(seeds)} | " + " | ".join(cells) + " |"


def difference(found: dict[Run, dict[str, float]], algorithm: str, method: str, seed: int, name: str) -> float:
    """Points that a method gained more than the plain algorithm of the same seed."""
    return found[Run(algorithm, method, seed)][name] - found[Run(algorithm, "plain", seed)][name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no run is begun")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and train nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(recorded()))
        return
    ends = time.monotonic() + 60 * arguments.minutes
    for run in all_runs():
        if time.monotonic() > ends:
            break
        if run not in recorded():
            train(run)


if __name__ == "__main__":
    main()
