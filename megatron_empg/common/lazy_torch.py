"""torch, imported when it is first used: a recipe is read, checked and planned for without it.

A recipe's keys are declared beside the formulas that read them, a model's sizes beside the mappings of its
tensors, and torch takes seconds and 200 MB to import. So what a recipe needs says
``from megatron_empg.common.lazy_torch import torch``, and imports what stands in annotations alone (``Tensor``,
shapes) for type checkers only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

__all__ = ["torch", "without_gradient"]

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        """Stands for the module; an attribute of it is looked up in torch itself."""

        def __getattr__(self, name: str) -> Any:
            import torch

            return getattr(torch, name)

    torch = _Torch()

P = ParamSpec("P")
R = TypeVar("R")


def without_gradient(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator like ``torch.no_grad()``, which would import torch where a function is defined."""

    @functools.wraps(function)
    def wrapped(*given: P.args, **named: P.kwargs) -> R:
        with torch.no_grad():
            return function(*given, **named)

    return wrapped
