"""Rotary positions as a config.json describes them, in whichever of the keys of old and new files."""

import math
from dataclasses import dataclass
from typing import Any

from megatron_empg.common.errors import EmpgError


class RopeConfigError(EmpgError, ValueError):
    """Rotary positions that cannot be represented; the message names the key."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of rotary positions: low frequencies divided by `factor`, high ones left alone."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


_PLACES = ("rope_parameters", "rope_scaling")
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_theta(raw: dict[str, Any]) -> float:
    """The base of the frequencies. Raises RopeConfigError where none stands, or several that differ."""
    given = {"rope_theta": raw.get("rope_theta")}
    for place in _PLACES:
        given[f"{place}.rope_theta"] = _section(raw, place).get("rope_theta")
    found = {key: positive(value, key) for key, value in given.items() if value is not None}
    if not found:
        raise RopeConfigError(
            "rope_theta: missing from config.json, and the model depends on it; write down what it was trained "
            "with (readers that know no better take 10000)"
        )
    if len(set(found.values())) > 1:
        told = [f"{key} ({value:g})" for key, value in found.items()]
        raise RopeConfigError(f"{' and '.join(told)} differ")
    return next(iter(found.values()))


def rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    """How positions are stretched, None where they are not. Raises RopeConfigError."""
    scalings = [_scaling(place, _section(raw, place)) for place in _PLACES]
    found = [scaling for scaling in scalings if scaling is not None]
    if len(set(found)) > 1:
        raise RopeConfigError(
            "rope_parameters and rope_scaling differ; keep the one that the model was trained with"
        )
    return next(iter(found), None)


def positive(value: Any, key: str) -> float:
    """The number. Raises RopeConfigError unless it is finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RopeConfigError(f"{key}: {value!r} is not a positive number")
    return float(value)


def _section(raw: dict[str, Any], place: str) -> dict[str, Any]:
    values = raw.get(place) or {}
    if not isinstance(values, dict):
        raise RopeConfigError(f"{place}: {values!r} is not a group of keys")
    by_layer = [key for key, value in values.items() if isinstance(value, dict)]
    if by_layer:
        if by_layer == ["full_attention"] and len(values) == 1:  # all layers are of this type
            return dict(values["full_attention"])
        raise RopeConfigError(
            f"{place}.{by_layer[0]}: positions of their own for types of layers are not supported"
        )
    return values


def _scaling(place: str, values: dict[str, Any]) -> RopeScaling | None:
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise RopeConfigError(f"{place}: type {rope_type!r} is not supported; supported: default, llama3")
    if values.get("partial_rotary_factor", 1.0) not in (1, None):
        raise RopeConfigError(f"{place}.partial_rotary_factor: below 1 is not supported")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if rope_type == "llama3":
        known.update(_SCALING)
    for key, value in values.items():
        if key not in known and value is not None:
            raise RopeConfigError(f"{place}.{key}: {value!r} is not understood in positions of type {rope_type!r}")
    if rope_type == "default":
        return None
    for key in _SCALING:
        if values.get(key) is None:
            raise RopeConfigError(f"{place}.{key}: missing from config.json")
    factor, low, high, original = [positive(values[key], f"{place}.{key}") for key in _SCALING]
    if low >= high:
        raise RopeConfigError(f"{place}.low_freq_factor: {low:g} is not below high_freq_factor ({high:g})")
    return RopeScaling(factor, low, high, int(original))
