"""The simulator beside real training: steps of several small settings, measured and predicted.

    python -m bench.simulation measure FOLDER
    python -m bench.simulation compare FOLDER

`measure` trains the quickstart's policy on this machine with real engines, a real rollout service and a real
trainer of one rank. Its steps take turns among the settings below, and before each round of them the first
engine's speed is measured by requests of known lengths. Beside them a process computes all the time: the share of
a core that it gets is what the machine leaves to one process, whatever else it does. FOLDER is a run folder, and
`measured.json` in it holds what was measured.

`compare` fits the engine's rates to those requests, takes lengths, the work of the rollout service, the trainer's
speed and the share of groups that is trained on from the steps of the setting "first" alone, all in seconds of a
whole core, and predicts the steps of all settings at the share of a core that there was. No time of a rollout is
fitted. Target: within 15%.
"""

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import secrets
import statistics
import sys
import threading
import time
from bisect import bisect
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from bench.late_search import DELAYS, LATE_SEARCH
from megatron_empg.common.files import put_text

if TYPE_CHECKING:
    import numpy

    from megatron_empg.planner.simulation.engine import EngineRates
    from megatron_empg.planner.simulation.recorded import RecordedRun

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/quickstart.yaml"
MEASURED = "measured.json"
BESIDE = "beside.txt"
BLOCK_TOKENS = 32
"""Of the engines' prefix cache on CPU, as megatron_empg/rollout/server.py starts them."""
TARGET = 0.15
T = TypeVar("T")


@dataclass(frozen=True)
class Small:
    """A small setting."""

    name: str
    groups: int
    group_size: int
    concurrency: int
    delayed: bool = False
    """Whether every answer of the environment comes late."""


SETTINGS = (
    Small("first", groups=6, group_size=4, concurrency=24),
    Small("more groups, fewer at once", groups=8, group_size=4, concurrency=8),
    Small("slow tools", groups=6, group_size=4, concurrency=24, delayed=True),
)
LOADS = (
    (1, 16, 24, 2),
    (4, 16, 24, 2),
    (8, 16, 24, 2),
    (24, 16, 24, 1),
    (24, 16, 2, 2),
    (1, 256, 2, 3),
    (8, 256, 2, 1),
)
"""(streams, tokens of a prompt, tokens sampled, requests of a stream) of the measurements of an engine."""


def compute_all_the_time(path: Path, parent: int) -> None:
    """Write (time, CPU seconds so far) ten times per second, until the parent is gone."""
    with path.open("w", encoding="ascii") as written:
        noted = 0.0
        while os.getppid() == parent:
            for _ in range(20_000):
                pass
            now = time.monotonic()
            if now - noted > 0.1:
                written.write(f"{now} {time.process_time()}\n")
                written.flush()
                noted = now


class Service:
    """The rollout services of all settings on one event loop, and the measurement of the first engine."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder, self.url, self.token = folder, url, token
        self.steps: list[dict[str, Any]] = []
        self.loads: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self._drivers = self._wait(self._open())

    def rollout(self, step: int) -> bytes:
        """The batch of a step under the setting whose turn it is."""
        small = SETTINGS[step % len(SETTINGS)]
        asked = time.monotonic()
        if step % len(SETTINGS) == 0:
            self._wait(self._measure_engine())
        began, before = time.monotonic(), self._scheduled()
        batch = self._wait(self._drivers[small.name].collect(step))
        self.steps.append(
            {
                "step": step + 1,
                "setting": small.name,
                "asked": asked,
                "began": began,
                "ended": time.monotonic(),
                "service": self._scheduled() - before,
                "load": os.getloadavg()[0],
            }
        )
        found = {"settings": [asdict(small) for small in SETTINGS], "steps": self.steps, "loads": self.loads}
        put_text(self.folder / MEASURED, json.dumps(found, indent=1))
        return batch

    def evaluate(self, split: str, greedy: bool) -> Any:
        raise NotImplementedError("this benchmark evaluates nothing")

    def probe(self) -> int:
        """A first batch of each setting and a first measurement, to warm up."""
        self._wait(self._measure_engine())
        self.loads.clear()
        return sum(self._wait(driver.probe()) for driver in self._drivers.values())

    def close(self) -> None:
        self._wait(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> dict[str, Any]:
        from megatron_empg.rollout.client import EngineClient
        from megatron_empg.rollout.service.rollout_service import open_rollout_service

        client = EngineClient(self.url, self.token, max_connections=512)
        self._client = await self._stack.enter_async_context(client)
        drivers = {}
        for small in SETTINGS:
            config = recipe_of(self.folder, small).service_config()
            opened = open_rollout_service(config, [self.url], self.token)
            drivers[small.name] = await self._stack.enter_async_context(opened)
        return drivers

    def _scheduled(self) -> float:
        """CPU seconds of the event loop's thread so far, by the kernel's accounts."""
        words = Path(f"/proc/self/task/{self._thread.native_id}/schedstat").read_text(encoding="ascii").split()
        return int(words[0]) / 1e9

    async def _measure_engine(self) -> None:
        from megatron_empg.rollout.client import Sampling

        async def stream(prompt: int, own: int, requests: int, numbers: Random) -> list[int]:
            sampled = []
            for _ in range(requests):
                tokens = [numbers.randrange(300, 1000) for _ in range(prompt)]
                seed = numbers.randrange(2**31)
                done = await self._client.generate(tokens, Sampling(1.0), max_tokens=own, seed=seed)
                sampled.append(len(done.token_ids))
            return sampled

        for streams, prompt, own, requests in LOADS:
            numbers = Random(len(self.loads))
            began = time.monotonic()
            sampled = await asyncio.gather(*(stream(prompt, own, requests, numbers) for _ in range(streams)))
            self.loads.append(
                {
                    "streams": streams,
                    "prompt": prompt,
                    "began": began,
                    "ended": time.monotonic(),
                    "requests": streams * requests,
                    "tokens": sum(map(sum, sampled)),
                    "passes": max(map(sum, sampled)),
                }
            )


def recipe_of(folder: Path, small: Small, steps: int = 1) -> Any:
    from megatron_empg.recipe import load_recipe

    overrides = [
        f"run.folder={folder}",
        f"run.steps={steps}",
        f"run.checkpoint_every={steps}",
        "evaluation.questions=0",
        "actor.tensor_parallel=1",
        "algorithm.kl_to_initial_every=0",
        "algorithm.max_generation_rounds=1",
        "logging.tensorboard=false",
        f"logging.episodes_per_step={small.groups * small.group_size}",
        f"rollout.groups={small.groups}",
        f"rollout.group_size={small.group_size}",
        f"rollout.concurrency={small.concurrency}",
    ]
    if small.delayed:
        overrides.append(f"environment.name={LATE_SEARCH}")
    return load_recipe(RECIPE, overrides)


def measure(folder: Path, rounds: int) -> None:
    """Train, and write down what was measured."""
    import torch

    from megatron_empg.actor.platform import device
    from megatron_empg.launch.engine_process import start_engine
    from megatron_empg.launch.ports import free_port
    from megatron_empg.launch.recipe_plan import engine_settings
    from megatron_empg.recipe.identity import take_up
    from megatron_empg.run.folder import RunFolder
    from megatron_empg.trainer.fleet_publisher import EngineSenses, FleetPublisher
    from megatron_empg.trainer.initial_actor import initial_actor
    from megatron_empg.trainer.loop import Training
    from megatron_empg.weights.sync.held_version import held_version
    from megatron_empg.weights.sync.transfer import WeightPublisher

    recipe = recipe_of(folder, SETTINGS[0], rounds * len(SETTINGS))
    take_up(recipe)
    token = secrets.token_hex(16)
    told = engine_settings(recipe)
    engine = start_engine(
        told.model,
        port=free_port(),
        token=token,
        log_path=folder / "logs/engine_0.log",
        max_model_len=told.max_model_len,
        kv_cache_bytes=told.kv_cache_bytes,
    )
    beside = mp.get_context("spawn").Process(target=compute_all_the_time, args=(folder / BESIDE, os.getpid()))
    beside.start()
    try:
        engine.wait_healthy(1800.0)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=str(free_port()))
        torch.set_num_threads(1)
        actor = initial_actor(recipe)
        service = Service(folder, engine.url, token)
        publisher = FleetPublisher(
            [engine.url],
            make=partial(WeightPublisher, token=token, device=device(), timeout=600.0),
            tell=lambda urls, version: None,  # the drivers of this benchmark play whatever the engine holds
            senses=EngineSenses(lambda url: held_version(url, token, 60.0)),
            patience=600.0,
            limit=600.0,
        )
        Training(recipe, actor, RunFolder(folder), driver=service, publisher=publisher).run()
        service.close()
        publisher.close()
    finally:
        beside.kill()
        engine.stop()


class Shares:
    """What share of a core the process beside got, over time."""

    def __init__(self, path: Path) -> None:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        self._noted = [(float(line[0]), float(line[1])) for line in lines if len(line) == 2]
        self._times = [now for now, _ in self._noted]

    def between(self, began: float, ended: float) -> float:
        return (self._spent(ended) - self._spent(began)) / (ended - began)

    def _spent(self, at: float) -> float:
        """CPU seconds until then."""
        after = min(max(1, bisect(self._times, at)), len(self._noted) - 1)
        (first, spent), (last, more) = self._noted[after - 1], self._noted[after]
        return spent + (more - spent) * (at - first) / (last - first)


@dataclass(frozen=True)
class MeasuredStep:
    """One step. Seconds of a whole core are the clock's times the share of a core that there was."""

    setting: str
    number: int
    rollout: float
    """Seconds by the clock."""
    train: float
    """Score, update, sync and what lies between."""
    rollout_share: float
    train_share: float
    service: float
    """CPU seconds of the rollout service."""
    turns: float
    load: float


def measured_steps(folder: Path, found: dict[str, Any], shares: Shares) -> list[MeasuredStep]:
    """All but the first of each setting."""
    from megatron_empg.common.jsonl import read_lines

    trained = {line["step"]: line for line in read_lines(folder / "metrics.jsonl") if "time/step" in line}
    steps = []
    for step in found["steps"][len(SETTINGS) :]:
        if step["step"] not in trained:
            continue
        line = trained[step["step"]]
        train = sum(line[f"time/{name}"] for name in ("score", "update", "sync", "other"))
        steps.append(
            MeasuredStep(
                setting=step["setting"],
                number=step["step"],
                rollout=step["ended"] - step["began"],
                train=train,
                rollout_share=shares.between(step["began"], step["ended"]),
                train_share=shares.between(step["ended"], step["ended"] + train),
                service=step["service"],
                turns=line["train/turns"] * line["train/episodes"],
                load=step["load"],
            )
        )
    return steps


def fitted_rates(loads: Sequence[dict[str, Any]], shares: Shares) -> tuple["EngineRates", list[str]]:
    """Rates, in seconds of a whole core, that explain each load's median with the least squares of relative
    errors; and each load's error, in words."""
    import numpy

    from megatron_empg.planner.simulation.engine import EngineRates

    rows, seconds, names = [], [], []
    for number, (streams, prompt, _own, _requests) in enumerate(LOADS):
        taken = loads[number :: len(LOADS)]
        spans = [(load["began"], load["ended"]) for load in taken]
        seconds.append(statistics.median((end - begin) * shares.between(begin, end) for begin, end in spans))
        passes, tokens = (statistics.fmean(load[name] for load in taken) for name in ("passes", "tokens"))
        requests = taken[0]["requests"]
        rows.append([passes, tokens, prompt * requests, requests])
        names.append(f"{streams} streams of {prompt} + {tokens / requests:.0f} tokens")
    scaled = numpy.array(rows) / numpy.array(seconds)[:, None]
    found = not_negative(scaled, numpy.ones(len(rows)))
    errors = [f"{name}: {value - 1:+.0%}" for name, value in zip(names, scaled @ found, strict=True)]
    fixed, by_sequence, read, request = map(float, found)
    rates = EngineRates(
        fixed_seconds=fixed,
        sequence_seconds=by_sequence,
        read_seconds=read,
        request_seconds=request,
        block_tokens=BLOCK_TOKENS,
    )
    return rates, errors


def not_negative(matrix: "numpy.ndarray", wanted: "numpy.ndarray") -> "numpy.ndarray":
    """Least squares among numbers of 0 and more, by trying which are 0."""
    import numpy

    count, best, least = matrix.shape[1], numpy.zeros(matrix.shape[1]), float(wanted @ wanted)
    for chosen in (kept for size in range(1, count + 1) for kept in combinations(range(count), size)):
        part, *_ = numpy.linalg.lstsq(matrix[:, chosen], wanted, rcond=None)
        error = matrix[:, chosen] @ part - wanted
        if (part >= 0).all() and error @ error < least:
            least = float(error @ error)
            best = numpy.zeros(count)
            best[list(chosen)] = part
    return best


def compare(folder: Path) -> bool:
    """Print measured and predicted steps; whether a setting is off by more than the target."""
    from rich.console import Console
    from rich.table import Table

    from megatron_empg.planner.simulation.recorded import read_recorded

    console, shares = Console(width=150), Shares(folder / BESIDE)
    found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    steps = measured_steps(folder, found, shares)
    rates, errors = fitted_rates(found["loads"], shares)
    first = [step for step in steps if step.setting == SETTINGS[0].name]
    recorded = read_recorded(folder, recipe_of(folder, SETTINGS[0]), [step.number for step in first])
    service = sum(step.service for step in first) / sum(step.turns for step in first)
    train_share = statistics.fmean(step.train_share for step in first)
    whole_core = replace(
        recorded,
        train_token_seconds=recorded.train_token_seconds * train_share,
        train_fixed_seconds=recorded.train_fixed_seconds * train_share,
        sync_seconds=recorded.sync_seconds * train_share,
    )
    lines = (
        f"engine, fitted to requests of known lengths, in seconds of a core: {rates}",
        f"errors of that fit: {'; '.join(errors)}",
        f"of the setting first: {recorded.episodes} episodes of {len(recorded.groups)} groups, "
        f"service {service * 1e3:.2f} ms per turn, "
        f"trainer {whole_core.train_token_seconds * 1e3:.3f} ms per token and {whole_core.sync_seconds:.2f} s of "
        f"sync, {recorded.kept_share:.0%} of groups trained on",
    )
    for line in lines:
        console.print(line, highlight=False)
    table = Table(
        "setting", "steps", "load", "share of a core", "what", "measured s", "spread", "predicted s", "ratio"
    )
    missed = False
    for small in SETTINGS:
        of_setting = [step for step in steps if step.setting == small.name]
        load = statistics.fmean(step.load for step in of_setting)
        share = statistics.fmean(step.rollout_share for step in of_setting)
        predicted = [predict(small, step, rates, whole_core, service) for step in of_setting]
        for what, seconds, mean in (
            ("rollout", [step.rollout for step in of_setting], statistics.fmean(each[0] for each in predicted)),
            ("step", [step.rollout + step.train for step in of_setting], statistics.fmean(map(sum, predicted))),
        ):
            ratio = mean / statistics.fmean(seconds)
            missed |= abs(ratio - 1) > TARGET
            words = (small.name, str(len(of_setting)), f"{load:.0f}", f"{share:.0%}", what)
            spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
            table.add_row(*words, f"{statistics.fmean(seconds):.2f}", spread, f"{mean:.2f}", f"{ratio:.2f}")
    console.print(table)
    return missed


def predict(
    small: Small, step: MeasuredStep, rates: "EngineRates", recorded: "RecordedRun", service: float
) -> tuple[float, float]:
    """Seconds of rollout and of training at the share of a core that there was in a step; rates and what was
    recorded are of a whole core."""
    from megatron_empg.planner.simulation.loop import simulate
    from megatron_empg.planner.simulation.setting import SimulationSetting
    from megatron_empg.planner.simulation.workload import RecordedWorkload

    slower, trains_slower = 1 / step.rollout_share, 1 / step.train_share
    setting = SimulationSetting(
        workload=RecordedWorkload(recorded.groups, DELAYS if small.delayed else (0.0,)),
        rates=replace(
            rates,
            fixed_seconds=rates.fixed_seconds * slower,
            sequence_seconds=rates.sequence_seconds * slower,
            read_seconds=rates.read_seconds * slower,
            request_seconds=rates.request_seconds * slower,
        ),
        engines=1,
        slots=256,
        cache_tokens=float("inf"),
        concurrency=small.concurrency,
        groups=small.groups,
        group_size=small.group_size,
        train_token_seconds=recorded.train_token_seconds * trains_slower,
        train_fixed_seconds=recorded.train_fixed_seconds * trains_slower,
        sync_seconds=recorded.sync_seconds * trains_slower,
        service_seconds=service * slower,
        kept_share=recorded.kept_share,
    )
    outcome = simulate(setting, steps=60)
    return outcome.waited_seconds, outcome.worked_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.folder, arguments.rounds)
    else:
        sys.exit(compare(arguments.folder))


if __name__ == "__main__":
    main()
