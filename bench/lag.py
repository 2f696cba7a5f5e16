"""A step of training at lag 1 beside the rollout and the update that a step at lag 0 is made of, with slow search.

    python -m bench.lag FOLDER
    python -m bench.lag FOLDER --median 0.75 --steps 16

The quickstart over GRPO, which trains on every group, with answers of the search that come late
(bench/late_search.py): so engines wait for tools, and two cores have room for engines and trainer at once. One
run at lag 0 and one at lag 1, of as many steps; the first two steps of each are left out. FOLDER gets a run
folder for each, and the share of the machine's cores that was busy is told by the trainer's phase, as its
heartbeat has it.

Target: a step at lag 1 takes at most 1.15 times the longer one of rollout and update at lag 0. The rollout is what
the engines need for a batch; the update is what the trainer needs: score, update and sync.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.late_search import LATE_SEARCH, MEDIAN_VARIABLE
from megatron_empg.common.jsonl import read_lines
from megatron_empg.run.heartbeat import read_beats

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.15
WARM_UP = 2
"""Steps that are not counted."""
SAMPLED_EVERY = 0.2
"""Seconds between two looks at the cores."""
OVERRIDES = {
    "algorithm": "{name: grpo, modulation: {name: empg}, updates_per_batch: 2}",
    "environment.name": LATE_SEARCH, "evaluation.questions": 0, "rollout.concurrency": 256,
    "limits.sync_timeout": 200, "logging.tensorboard": "false", "actor.tensor_parallel": 1,
}  # fmt: skip
BY_LAG: dict[int, dict[str, Any]] = {
    0: {"rollout.max_lag": 0},
    1: {"rollout.max_lag": 1, "algorithm.correction": "tis"},
}


class Load:
    """What share of the cores was busy, by the phase of a run's trainer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def mean(self, phase: str) -> float:
        return statistics.fmean(self._seen[phase] or [0.0])

    def all(self) -> float:
        """Over all phases of training."""
        return statistics.fmean([share for phase in PHASES for share in self._seen[phase]] or [0.0])

    def _look(self) -> None:
        psutil.cpu_percent()
        while not self._over.wait(SAMPLED_EVERY):
            share = psutil.cpu_percent() / 100
            for beat in read_beats(self._folder):
                if beat.rank == 0 and beat.step > WARM_UP:
                    self._seen[beat.phase].append(share)


PHASES = ("rollout", "score", "update", "sync")


def train(folder: Path, lag: int, steps: int, median: float) -> Load:
    """A run at that lag, from its start to its end."""
    more = {"run.folder": folder, "run.steps": steps, "run.checkpoint_every": steps}
    overrides = [f"{key}={value}" for key, value in (OVERRIDES | BY_LAG[lag] | more).items()]
    command = [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *overrides]
    variables = {**os.environ, MEDIAN_VARIABLE: str(median), "PYTHONPATH": str(ROOT)}
    load = Load(folder)
    try:
        with (folder.parent / f"{folder.name}.out").open("wb") as output:
            subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=output, check=True)
    finally:
        load.close()
    return load


def seconds(steps: Sequence[dict[str, Any]], *phases: str) -> float:
    """Mean over the steps of what those phases took together."""
    return statistics.fmean(sum(step[f"time/{phase}"] for phase in phases) for step in steps)


def counted(folder: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "time/step" in line]
    return [line for line in lines if line["step"] > WARM_UP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--median", type=float, default=3.0, help="seconds of an answer of the search, in the median"
    )
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    whole = {}
    for lag in BY_LAG:
        folder = arguments.folder / f"lag_{lag}"
        load = train(folder, lag, arguments.steps, arguments.median)
        steps = counted(folder)
        whole[lag] = seconds(steps, "step")
        rollout, update = seconds(steps, "rollout"), seconds(steps, "score", "update", "sync", "other")
        times = [step["time/step"] for step in steps]
        episodes = statistics.fmean(step["train/episodes"] for step in steps)
        print(
            f"lag {lag}: {len(steps)} steps of {whole[lag]:.2f} s ({min(times):.1f} to {max(times):.1f}) and "
            f"{episodes:.0f} episodes; the trainer waits {rollout:.2f} s for its batch and works {update:.2f} s"
        )
        busy = ", ".join(f"{phase} {load.mean(phase):.0%}" for phase in PHASES)
        print(f"       cores busy: {load.all():.0%} ({busy})")
        if lag == 0:
            longer = max(rollout, update)
    ratio = whole[1] / longer
    print(f"a step at lag 1 by the longer of rollout and update at lag 0: {ratio:.2f} (target: {TARGET} at most)")


if __name__ == "__main__":
    main()
