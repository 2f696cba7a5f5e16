"""What training gains, for several seeds: python bench/gains.py RECIPE [key=value ...] [--name NAME]

    python bench/gains.py recipes/sokoban_miniature.yaml --seeds 1,2,3
    python bench/gains.py recipes/sokoban_miniature.yaml algorithm.modulation=empg --name sokoban_miniature-empg
    python bench/gains.py --table [--name NAME]

Each seed is a run of `empg train` in --runs/NAME-SEED that is evaluated before the first step and behind the last
one, by the recipe's `evaluation.questions` of each of its splits, or all that a split has. NAME is the recipe's
where none is given. A finished run becomes a line of docs/gains.jsonl (or --results), and its folder is removed. A
run that has a line is not made again, one that was interrupted is continued by the same command.

Lines of a name are of runs that differ in their seed alone: a line has the identity of its run, and a name whose
lines have another is refused. `--identity` prints that of a recipe with overrides.

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

from megatron_empg.common.errors import EmpgError, told_plainly
from megatron_empg.common.jsonl import append_line, read_lines
from megatron_empg.recipe import Recipe
from megatron_empg.report.table.seeds import student_interval
from megatron_empg.run.folder import RunFolder
from megatron_empg.study.identity import SEED, SHARED, as_run, identity_of
from megatron_empg.study.measured import commits_of, seconds_of, success

RESULTS = Path("docs/gains.jsonl")
RUNS = Path("runs/gains")
HEAD = ("run", "seed", "split", "success before → after, in %", "gained, in points")


class GainsError(EmpgError, ValueError):
    """What was asked for cannot be measured, or a file of results cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Setup:
    """What a name stands for. `overrides` are those of the command line, in its order."""

    name: str
    recipe: str
    overrides: list[str]
    identity: str


@dataclass(frozen=True)
class Gain:
    """A finished run. `before` and `after` are shares of success by series, such as "test_id/greedy", `questions`
    how many each series has; `seconds` are those of steps and evaluations, without the start of engines; `commit`
    has the code's at each start of the run."""

    name: str
    recipe: str
    overrides: list[str]
    identity: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    questions: dict[str, int]
    steps: int
    seconds: int
    finished: str
    commit: str


def recorded(path: Path) -> list[Gain]:
    """The lines of a file; none where it is missing. Raises GainsError for one that is no run's."""
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            found.append(Gain(**line))
        except TypeError as error:
            raise GainsError(
                f"{path}, line {number}: it is not the line of a run ({error}); take it out, or give others"
            ) from None
    return found


def missing(setup: Setup, seeds: Sequence[int], found: Sequence[Gain]) -> list[int]:
    """The seeds without a line. Raises GainsError where the name stands for something else already."""
    named = [gain for gain in found if gain.name == setup.name]
    for gain in named:
        if gain.identity != setup.identity:
            raise GainsError(
                f"--name {setup.name} stands for {gain.recipe} with {gain.overrides} already, whose identity "
                f"{gain.identity} was another: keys, model or data; this is {setup.identity}. Give another --name"
            )
    done = {gain.seed for gain in named}
    return [seed for seed in seeds if seed not in done]


def gain_of(setup: Setup, seed: int, records: Sequence[dict[str, Any]], commit: str) -> Gain:
    """The line of a finished run, by its metrics. Raises GainsError if it was not evaluated before and after."""
    evaluated = [record for record in records if success(record)]
    if len(evaluated) < 2 or evaluated[0]["step"] != 0 or evaluated[-1]["step"] != records[-1]["step"]:
        steps = [record["step"] for record in evaluated]
        raise GainsError(
            f"{setup.name}, seed {seed}: evaluated at steps {steps}; the first and the last are needed"
        )
    before, after = success(evaluated[0]), success(evaluated[-1])
    return Gain(
        **asdict(setup),
        seed=seed,
        before=before,
        after=after,
        questions={series: int(evaluated[-1][f"eval/{series}_questions"]) for series in after},
        steps=int(records[-1]["step"]),
        seconds=seconds_of(records),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit,
    )


def train(setup: Setup, recipe: Recipe, seed: int, runs: Path, results: Path) -> bool:
    """Train or go on training, and write the run's line; whether it came to its end."""
    folder = runs / f"{setup.name}-{seed}"
    questions = f"evaluation.questions={recipe.evaluation.questions}"
    overrides = [*SHARED, *setup.overrides, questions, f"{SEED}={seed}", f"run.folder={folder}"]
    command = [sys.executable, "-m", "megatron_empg.cli", "train", setup.recipe, *overrides]
    ended = subprocess.run(command, check=False, stdout=sys.stderr)
    # An interrupt ends a run in order, before its last step.
    if ended.returncode or not RunFolder(folder).finished(recipe.run.steps):
        print(f"{folder}: ended with status {ended.returncode}; the same command goes on", file=sys.stderr)
        return False
    keep_line(setup, seed, folder, results)
    return True


def keep_line(setup: Setup, seed: int, folder: Path, results: Path) -> None:
    """Of a finished run its line alone. Raises GainsError, and leaves the folder, where it makes none."""
    gain = gain_of(setup, seed, read_lines(folder / "metrics.jsonl"), commits_of(RunFolder(folder)))
    append_line(results, asdict(gain))
    shutil.rmtree(folder)


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
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3], help="separated by commas: 1,2,3 unless given")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"where runs lie until they end: {RUNS}")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where lines are: {RESULTS}")
    parser.add_argument("--table", action="store_true", help="print what is there, and train nothing")
    parser.add_argument(
        "--identity", action="store_true", help="print what lines must agree in, and train nothing"
    )
    given = parser.parse_intermixed_args(words)
    if given.recipe is None and not given.table:
        parser.error("give a recipe, or --table")
    return given


def numbers(text: str) -> list[int]:
    """1,2,3 as [1, 2, 3]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers separated by commas") from None


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = parsed(words)
    # A file beside this one is called as ScienceWorld's package is, which is looked for from here on.
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    with told_plainly():
        if given.table:
            print(table([gain for gain in recorded(given.results) if given.name in (None, gain.name)]))
            return 0
        recipe = as_run(given.recipe, given.overrides)
        setup = Setup(given.name or given.recipe.stem, str(given.recipe), given.overrides, identity_of(recipe))
        if given.identity:
            print(setup.identity)
            return 0
        seeds = missing(setup, given.seeds, recorded(given.results))
        ended = all(train(setup, recipe, seed, given.runs, given.results) for seed in seeds)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
