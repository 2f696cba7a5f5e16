"""The engine of ALFWorld: TextWorld over PDDL, with the names of things as ALFWorld gives them.

Only a process that plays imports it, and one process plays one game at a time: it is not safe to use in threads.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from megatron_empg.environments.alfworld.caches import install_caches, remove_caches


def import_engine() -> None:
    """Load the engine's modules, as `open_game` does."""
    for name in ("textworld", "textworld.envs", "alfworld.agents.environment.alfred_tw_env"):
        import_module(name)


def open_game(path: Path, *, expert: bool = False, cached: bool = True) -> Any:
    """A game of TextWorld's interface, loaded: `reset()`, and then `step(command)` → (state, score, done).

    `expert`: the state then holds what ALFWorld's hand-coded expert would do, who reads traj_data.json beside the
    game. Without `cached` the process has none of the caches any more.
    """
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredExpert, AlfredInfos
    from textworld.envs import PddlEnv

    if cached:
        install_caches()
    else:
        remove_caches()
    asked = textworld.EnvInfos(admissible_commands=True, won=True, facts=expert, extras=["gamefile"])
    game = AlfredInfos(AlfredDemangler(PddlEnv(asked), shuffle=False))
    if expert:
        game = AlfredExpert(game)
    game.load(str(path))
    return game


def engine_versions() -> dict[str, str]:
    """{package: version} of what decides how a game goes."""
    from importlib.metadata import version

    return {name: version(name) for name in ("alfworld", "textworld", "fast-downward-textworld")}
