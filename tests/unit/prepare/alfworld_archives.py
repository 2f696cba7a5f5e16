"""ALFWorld's published archives, made small: games with their facts, as the zip files have them."""

from __future__ import annotations

import json

FACTS, GAME = "traj_data.json", "game.tw-pddl"
KIND = "pick_and_place_simple"


def places(count: int) -> list[str]:
    """Folders of so many games of training and one of each other split."""
    names = [f"train/{KIND}-Mug-None-Desk-{number}/trial_{number}" for number in range(count)]
    return [*names, f"valid_seen/{KIND}-Mug-None-Desk-1/trial_s", f"valid_unseen/{KIND}-Mug-None-Desk-9/trial_u"]


def facts(count: int, padding: int = 0) -> dict[str, bytes]:
    """The archive of facts: also of tasks of which there is no game."""
    content = json.dumps({"task_type": KIND, "padding": "x" * padding}).encode()
    names = [*places(count), f"train/{KIND}-Mug-None-Desk-0/trial_without_a_game"]
    return {f"json_2.1.1/{name}/{FACTS}": content for name in names}


def games(count: int) -> dict[str, bytes]:
    """The archive of games: also a split that is not used."""
    found = {}
    for number, name in enumerate([*places(count), f"valid_train/{KIND}-Mug-None-Desk-1/trial_v"]):
        grammar = f'... Your task is to: put mug {number} in desk." ...'
        game = {"solvable": True, "grammar": grammar, "pddl_problem": str(number)}
        found[f"json_2.1.1/{name}/{GAME}"] = json.dumps(game).encode()
    return found
