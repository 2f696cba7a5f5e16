"""Measurements that a simulation is given as files: an engine's rates, and latencies of an environment."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_empg.planner.simulation.engine import EngineRates
from megatron_empg.recipe import RecipeError

NAMES = tuple(field.name for field in fields(EngineRates))


def read_rates(path: Path) -> EngineRates:
    """An engine's rates, as JSON of some of their names and seconds. Raises RecipeError."""
    found = _json(path, "--engine-rates")
    if not isinstance(found, dict) or not found:
        raise RecipeError(f"--engine-rates {path}: it must hold an object of {', '.join(NAMES)}")
    for name, value in found.items():
        if name not in NAMES:
            raise RecipeError(f"--engine-rates {path}: {name} is not a rate; allowed: {', '.join(NAMES)}")
        _not_negative(value, f"--engine-rates {path}: {name}")
    rates = EngineRates(**found)
    if rates.pass_seconds(1, 1.0) <= 0:
        raise RecipeError(f"--engine-rates {path}: a pass takes no time; give fixed_seconds or another above 0")
    if not isinstance(rates.block_tokens, int) or rates.block_tokens < 1:
        raise RecipeError(f"--engine-rates {path}: block_tokens is {rates.block_tokens}; it must be 1 or more")
    return rates


def rates_as_json(rates: EngineRates) -> str:
    """The inverse of `read_rates`."""
    return json.dumps(asdict(rates), indent=1) + "\n"


def read_latencies(path: Path) -> tuple[float, ...]:
    """Seconds of single answers of an environment, as a JSON list. Raises RecipeError."""
    found = _json(path, "--tool-latency")
    if not isinstance(found, list) or not found:
        raise RecipeError(f"--tool-latency {path}: it must hold a list of seconds, at least one")
    for number, value in enumerate(found):
        _not_negative(value, f"--tool-latency {path}: number {number}")
    return tuple(map(float, found))


def _json(path: Path, flag: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{flag} {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{flag} {path}: it is not JSON: {error}") from None


def _not_negative(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RecipeError(f"{what} is {value!r}; it must be a number of 0 or more")
