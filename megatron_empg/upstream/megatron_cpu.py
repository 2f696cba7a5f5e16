"""Megatron-core's own modules where there is no CUDA."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch

from megatron_empg.upstream.record import patch, private_api

_TESTED = ("0.16.1", "0.19.2")


@patch(
    "megatron-core",
    symptom="functions of Megatron's are compiled when first called: minutes and a C++ compiler on CPU",
    trigger="megatron.core is imported on CPU",
    why=(
        "megatron.core.jit binds torch.compile in being imported, and every module decorates with it in being "
        "imported in its turn: switched off later it is too late for those"
    ),
    versions=_TESTED,
    can_go_when="an environment variable or a call before the first import switches the fuser off",
)
def import_without_compiling() -> Any:
    """Import Megatron's modules that call torch.compile at import with it switched off.

    Returns the module of random states.
    """
    original = torch.compile
    torch.compile = _leave_as_it_is  # type: ignore[assignment]
    try:
        random_module = importlib.import_module("megatron.core.tensor_parallel.random")
        jit = importlib.import_module("megatron.core.jit")
    finally:
        torch.compile = original  # type: ignore[assignment]
    jit.disable_jit_fuser()
    return random_module


def _leave_as_it_is(function: Any = None, **_: Any) -> Any:
    """Stands for torch.compile in both of its forms: called with the function, or as a decorator with options."""
    if function is None:
        return _leave_as_it_is
    return function


@patch(
    "megatron-core",
    symptom="numbers drawn in a fork of a random state move everybody's generator, so that ranks part; silent",
    trigger="Megatron's tracker of random states is forked on CPU, as in making a layer's weights",
    why="it sets the states of CUDA's generators by calls that wait for CUDA to be there",
    versions=_TESTED,
    can_go_when="the tracker knows CPU generators",
)
def track_the_cpu_generator(random_module: Any) -> None:
    """The CPU has one generator; Megatron's tracker swaps its state as it would the CUDA generator's."""
    random_module._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random_module._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


@patch(
    "megatron-core",
    symptom='"CPU RNG state changed within GPU RNG context" at every fork of a random state',
    trigger="Megatron's tracker is forked on CPU, as in making a layer's weights",
    why="on CPU the two generators it compares are one, so the warning says nothing",
    versions=_TESTED,
    can_go_when="the tracker knows CPU generators",
)
def drop_warning_of_cpu_generator(random_module: Any) -> None:
    """Leave that warning out of the log, and no other."""
    logging.getLogger(random_module.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


@private_api(
    "megatron-core",
    symptom="a dozen warnings, one for each module, that Transformer Engine or apex is missing",
    trigger="megatron.core is imported where one of them is not installed",
    why="they are warnings of Python's, told apart by nothing but the module that gives them",
    versions=_TESTED,
    can_go_when="Megatron says it once, or by its log",
)
def drop_warnings_of_missing_parts() -> None:
    """Leave out Python's warnings that come from Megatron's modules."""
    warnings.filterwarnings("ignore", module=r"megatron\.")
