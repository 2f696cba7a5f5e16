"""Transformer Engine: whether it can be used, and one that is installed by half."""

from __future__ import annotations

import importlib.util
import logging
import sys

import torch

from megatron_empg.upstream.record import patch

logger = logging.getLogger(__name__)
_PARTS = "transformer_engine", "transformer_engine_torch"
"""The package, and its extension for torch, which is built apart and may be missing."""


def available() -> bool:
    """Whether Transformer Engine's layers can be used: both its parts installed, on a CUDA device."""
    return torch.cuda.is_available() and all(map(_installed, _PARTS))


@patch(
    "transformer-engine",
    symptom="FileNotFoundError: Could not find shared object file for Transformer Engine torch lib",
    trigger="megatron.core is imported where the package is installed and its extension for torch is not",
    why="Megatron expects an ImportError of a missing package, and the package raises another",
    versions=("2.20.2",),
    can_go_when="importing transformer_engine without its extension is an ImportError",
)
def hide_half_installed() -> None:
    """Let importing Transformer Engine without its extension be an ImportError, the one that Megatron expects."""
    package, extension = _PARTS
    if _installed(package) and not _installed(extension):
        sys.modules[package] = None  # type: ignore[assignment]
        logger.warning("Transformer Engine lacks its part for torch (%s) and is not used", extension)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
