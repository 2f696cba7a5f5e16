"""Small recipes for tests."""

from pathlib import Path
from typing import Any

from megatron_empg.recipe import Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes/quickstart.yaml"


def quickstart(*overrides: str) -> Recipe:
    """The recipe that trains from nothing, with these keys."""
    return load_recipe(QUICKSTART, list(overrides))


def least(**sections: dict[str, Any]) -> Recipe:
    """What a recipe must say, of files that are not there, and these sections' keys."""
    said: dict[str, dict[str, Any]] = {
        "run": {"folder": "runs/x", "steps": 1},
        "model": {"path": "models/x"},
        "environment": {"name": "deep_search"},
        "rollout": {"groups": 4, "group_size": 2},
    }
    for name, keys in sections.items():
        said[name] = said.get(name, {}) | keys
    return parse_recipe(said)
