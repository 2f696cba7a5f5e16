"""What ALFWorld costs as an environment: beside its bare engine, and with and without the two caches.

    PYTHONPATH=. .venv-alfworld/bin/python bench/alfworld.py
    PYTHONPATH=. .venv-alfworld/bin/python bench/alfworld.py --folder data/alfworld --steps 60

Three games of ``generate --seed 0`` (made in a temporary folder unless `--folder` has them): a bedroom, a
bathroom and a kitchen with 15 cabinets. Seeded commands are given to the world, whose steps are timed together
with the engine's steps inside of them. Times are CPU times of the process, so that another's load hardly counts.
"""

import argparse
import importlib
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.engine import open_game
from megatron_empg.environments.alfworld.generate import GameJob, entry_of, make_game
from megatron_empg.environments.alfworld.manifest import GAME_FILE, KINDS, Game
from megatron_empg.environments.alfworld.world import AlfWorldGame

NAMED = {"bedroom": 1, "bathroom": 2, "large kitchen": 3}
"""Games of training with seed 0, by their number."""
LARGE = "large kitchen"
MOST_OVERHEAD = 1.1
LEAST_SPEED_UP = 1.7


@dataclass
class Costs:
    """CPU seconds of each call, and what was said."""

    load: float = 0.0
    reset: float = 0.0
    steps: list[float] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)

    @property
    def of_steps(self) -> float:
        return sum(self.steps)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what came of it."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def bare(
    path: Path, steps: int, commands: Sequence[str] | None = None, *, cached: bool = True
) -> tuple[Costs, list[str]]:
    """The engine alone: commands drawn among those that it lists, or these."""
    costs, given, rng = Costs(), [], random.Random(0)
    costs.load, game = timed(lambda: open_game(path, cached=cached))
    costs.reset, state = timed(game.reset)
    costs.said.append((state.feedback, state.admissible_commands))
    for number in range(steps):
        command = rng.choice(state.admissible_commands) if commands is None else commands[number]
        seconds, (state, _, done) = timed(lambda command=command: game.step(command))
        costs.steps.append(seconds)
        costs.said.append((state.feedback, state.admissible_commands))
        given.append(command)
        if done:
            break
    game.close()
    return costs, given


class TimedEngine:
    """The engine in a world, with the CPU seconds of its steps."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.seconds = 0.0

    def step(self, command: str) -> Any:
        seconds, result = timed(lambda: self.engine.step(command))
        self.seconds += seconds
        return result

    def close(self) -> None:
        self.engine.close()


def overhead(folder: Path, game: Game, commands: Sequence[str]) -> float:
    """CPU time of the world's steps over that of the engine's steps inside of them."""
    world = AlfWorldGame(folder, game, 10.0)
    world.begin()
    engine = TimedEngine(world._engine)
    world._engine = engine
    of_world = 0.0
    for command in commands:
        seconds, _ = timed(lambda command=command: world.act(command))
        of_world += seconds
    world.close()
    return of_world / engine.seconds


def speed_up(path: Path, steps: int) -> tuple[Costs, Costs]:
    """The bare engine without the caches, and with caches that are empty at first, over the same commands."""
    without, commands = bare(path, steps, cached=False)
    with_them, _ = bare(path, len(commands), commands)
    return without, with_them


def made(folder: Path) -> dict[str, tuple[Path, Game]]:
    """{name: folder and entry} of the named games."""
    found = {}
    for name, number in NAMED.items():
        place = make_game(GameJob(folder, 0, "train", KINDS[number % len(KINDS)], number))
        found[name] = (place, entry_of(folder, place))
    return found


def compare(folder: Path, steps: int) -> bool:
    """Print the figures. Whether they are what they must be."""
    games = made(folder)
    kept = True
    for name, (place, game) in games.items():
        costs, commands = bare(place / GAME_FILE, steps)
        ratio = overhead(place, game, commands)
        kept &= ratio <= MOST_OVERHEAD
        mean = 1000 * costs.of_steps / len(costs.steps)
        print(f"{name}: {game.id}")
        print(
            f"  load {costs.load:.2f} s, reset {costs.reset:.2f} s, step {mean:.0f} ms over {len(commands)} steps"
        )
        print(f"  world / bare engine: {ratio:.3f} (at most {MOST_OVERHEAD})", flush=True)
    without, with_them = speed_up(games[LARGE][0] / GAME_FILE, steps)
    same = without.said == with_them.said
    kept &= same and without.of_steps >= LEAST_SPEED_UP * with_them.of_steps
    faster = [
        f"load {without.load / with_them.load:.1f} x",
        f"reset {without.reset / with_them.reset:.1f} x",
        f"step {without.of_steps / with_them.of_steps:.2f} x (at least {LEAST_SPEED_UP})",
    ]
    print(f"with the caches, {LARGE}: {', '.join(faster)}; transcripts {'equal' if same else 'DIFFER'}")
    print(f"memory of the process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where games are, or are to be made")
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    here = Path(__file__).resolve().parent
    # This file is called as the engine's package is, which is imported from here on.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    importlib.import_module("alfworld.agents.environment.alfred_tw_env")  # no part of a game's load
    with tempfile.TemporaryDirectory() as aside:
        kept = compare(given.folder or Path(aside), given.steps)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
