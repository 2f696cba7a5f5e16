"""What training gains, for several seeds: python bench/gains.py RECIPE [key=value ...] [--name NAME]

    python bench/gains.py recipes/sokoban_miniature.yaml --seeds 1,2,3
    python bench/gains.py recipes/sokoban_miniature.yaml algorithm.modulation=empg --name sokoban_miniature-empg
    python bench/gains.py --table [--name NAME]

Each seed is a run of `empg train` in --runs/NAME-SEED that evaluates 500 questions of each split before the first
step and behind the last one, unless the overrides say otherwise. NAME is the recipe's where none is given; other
overrides need another name. A finished run becomes a line of docs/gains.jsonl (or --results), and its folder is
removed. A run that has a line is not made again, one that was interrupted is continued by the same command.
`--table` prints the lines as Markdown: each seed, and the mean over seeds with an interval of 95% of the gain, by
Student's t.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.recipe import load_recipe
from megatron_empg.report.table.seeds import student_interval
from megatron_empg.run.folder import RunFolder

RESULTS = Path("docs/gains.jsonl")
RUNS = Path("runs/gains")
SHARED = ["evaluation.every=0", "evaluation.questions=500"]
HEAD = ("run", "seed", "split", "success before → after, in %", "gained, in points")


@dataclass(frozen=True)
class Setup:
    """What a name stands for. `overrides` are those of the command line, in its order."""

    name: str
    recipe: str
    overrides: list[str]


@dataclass(frozen=True)
class Gain:
    """A finished run. `before` and `after` are shares of success by series, such as "test_id/greedy", `questions`
    how many each series has; `seconds` are those of steps and evaluations, without the start of engines."""

    name: str
    recipe: str
    overrides: list[str]
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    questions: dict[str, int]
    steps: int
    seconds: int
    finished: str
    commit: str

    @property
    def setup(self) -> Setup:
        return Setup(self.name, self.recipe, self.overrides)


def recorded(path: Path) -> list[Gain]:
    """The lines of a file; none where it is missing. Raises ValueError for one that is no run's."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            found.append(Gain(**line))
        except TypeError as error:
            raise ValueError(f"{path}, line {number}: it is not the line of a run ({error})") from None
    return found


def missing(setup: Setup, seeds: Sequence[int], found: Sequence[Gain]) -> list[int]:
    """The seeds without a line. Raises ValueError where the name stands for something else already."""
    named = [gain for gain in found if gain.name == setup.name]
    for gain in named:
        if gain.setup != setup:
            raise ValueError(
                f"--name {setup.name} stands for {gain.recipe} with {gain.overrides} already; give another"
            )
    done = {gain.seed for gain in named}
    return [seed for seed in seeds if seed not in done]


def success(record: dict[str, Any]) -> dict[str, float]:
    """{series: share} of all questions of an evaluation that a record of metrics.jsonl holds.

    >>> success({"eval/test_id/greedy": 0.5, "eval/test_id/greedy/room": 0.5, "eval/test_id/greedy_questions": 2})
    {'test_id/greedy': 0.5}
    """
    found = {}
    for key, value in record.items():
        _, _, series = key.partition("eval/")
        if series.count("/") == 1 and series.endswith(("/sampled", "/greedy")):
            found[series] = value
    return found


def gain_of(setup: Setup, seed: int, records: Sequence[dict[str, Any]], commit: str) -> Gain:
    """The line of a finished run, by its metrics. Raises ValueError if it was not evaluated before and after."""
    evaluated = [record for record in records if success(record)]
    if len(evaluated) < 2 or evaluated[0]["step"] != 0 or evaluated[-1]["step"] != records[-1]["step"]:
        steps = [record["step"] for record in evaluated]
        raise ValueError(
            f"{setup.name}, seed {seed}: evaluated at steps {steps}; the first and the last are needed"
        )
    before, after = success(evaluated[0]), success(evaluated[-1])
    seconds = sum(record.get("time/step", 0) + record.get("time/evaluate", 0) for record in records)
    return Gain(
        **asdict(setup),
        seed=seed,
        before=before,
        after=after,
        questions={series: int(evaluated[-1][f"eval/{series}_questions"]) for series in after},
        steps=int(records[-1]["step"]),
        seconds=round(seconds),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
    )


def train(setup: Setup, seed: int, runs: Path, results: Path) -> bool:
    """Train or go on training, and write the run's line; whether it came to its end."""
    folder = runs / f"{setup.name}-{seed}"
    overrides = [*SHARED, *setup.overrides, f"run.seed={seed}", f"run.folder={folder}"]
    command = [sys.executable, "-m", "megatron_empg.cli", "train", setup.recipe, *overrides]
    ended = subprocess.run(command, check=False, stdout=sys.stderr)
    steps = load_recipe(Path(setup.recipe), overrides).run.steps
    # An interrupt ends a run in order, before its last step.
    if ended.returncode or not RunFolder(folder).finished(steps):
        print(f"{folder}: ended with status {ended.returncode}; the same command goes on", file=sys.stderr)
        return False
    gain = gain_of(setup, seed, read_lines(folder / "metrics.jsonl"), code_version())
    append_line(results, asdict(gain))
    shutil.rmtree(folder)
    return True


def code_version() -> str:
    """The commit; marked where files were changed since."""
    described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def table(found: Sequence[Gain]) -> str:
    """For each name and series a row for each seed, and one for their mean."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in dict.fromkeys(gain.name for gain in found):
        gains = sorted((gain for gain in found if gain.name == name), key=lambda gain: gain.seed)
        for series in gains[0].after:
            lines += rows(name, series, gains)
    return "\n".join(lines)


def rows(name: str, series: str, gains: Sequence[Gain]) -> list[str]:
    """One series of one name."""
    before = [100 * gain.before[series] for gain in gains]
    after = [100 * gain.after[series] for gain in gains]
    gained = [end - start for start, end in zip(before, after, strict=True)]
    shown = series.replace("/", ", ")
    lines = [
        f"| {name} | {gain.seed} | {shown} | {start:.1f} → {end:.1f} | {end - start:+.1f} |"
        for gain, start, end in zip(gains, before, after, strict=True)
    ]
    if len(gains) > 1:
        reach = student_interval(gained)
        interval = f"**{mean(gained):+.1f}** [{reach.low:+.1f}, {reach.high:+.1f}]"
        lines.append(f"| {name} | mean | {shown} | {mean(before):.1f} → {mean(after):.1f} | {interval} |")
    return lines


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", help="needed, unless --table is given")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--name", help="the recipe's unless given; with --table of the runs that are shown, or all"
    )
    parser.add_argument("--seeds", default="1,2,3", help="separated by commas: 1,2,3 unless given")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"where runs lie until they end: {RUNS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where lines are: {RESULTS}")
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    given = parser.parse_intermixed_args(words)
    if given.recipe is None and not given.table:
        parser.error("give a recipe, or --table")
    return given


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = parsed(words)
    if given.table:
        print(table([gain for gain in recorded(given.results) if given.name in (None, gain.name)]))
        return 0
    setup = Setup(given.name or given.recipe.stem, str(given.recipe), given.overrides)
    seeds = missing(setup, [int(seed) for seed in given.seeds.split(",")], recorded(given.results))
    return 0 if all(train(setup, seed, given.runs, given.results) for seed in seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
