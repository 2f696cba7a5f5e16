"""Log-prob and entropy of a policy whose vocabulary is sharded over tensor-parallel ranks.

What is named here is imported when it is first used: a plan asks `chunk` alone, and torch takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_empg.vocab_parallel.debug import debug_checks
    from megatron_empg.vocab_parallel.fused import linear_logprob_and_entropy
    from megatron_empg.vocab_parallel.reference import dense_logprob_and_entropy
    from megatron_empg.vocab_parallel.sharded import logprob_and_entropy

__all__ = ["debug_checks", "dense_logprob_and_entropy", "linear_logprob_and_entropy", "logprob_and_entropy"]

_MODULES = {
    "debug_checks": "debug",
    "dense_logprob_and_entropy": "reference",
    "linear_logprob_and_entropy": "fused",
    "logprob_and_entropy": "sharded",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
